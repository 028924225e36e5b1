//! A loaded module, and how it runs.

use std::cell::Cell;

use tch::{CModule, Device, IValue};

use crate::{
    Failure,
    libtorch::{self, GpuStream, Memory, Mode},
    table::{self, Options},
    values::{Outputs, input, outputs},
};

pub struct Module {
    module: CModule,
    options: Options,
    device: Option<Device>,
    stream: Option<GpuStream>,
    memory: Memory,
}

impl Module {
    pub fn load(path: &str, options: Options) -> Result<Self, Failure> {
        let _mode = Mode::enter(options.inference_mode);
        if options.inter_op_threads > 0
            && options.inter_op_threads != tch::get_num_interop_threads()
        {
            set_inter_op_threads(options.inter_op_threads)?;
        }
        let device = match options.device {
            table::AS_SAVED => None,
            table::HOST => Some(Device::Cpu),
            gpu => {
                let count = libtorch::gpu_count();
                let known = usize::try_from(gpu).ok().filter(|_| gpu < count);
                let gpu = known.ok_or_else(|| Failure(no_gpu(gpu, count)))?;
                Some(Device::Cuda(gpu))
            }
        };
        let stream = match device {
            Some(Device::Cuda(_)) if options.stream != 0 => {
                Some(GpuStream::of(options.device, options.stream))
            }
            Some(Device::Cuda(_)) => Some(GpuStream::new(options.device)?),
            _ => None,
        };
        let module = match device {
            Some(device) => CModule::load_on_device(path, device),
            None => CModule::load(path),
        }?;
        let gpu = if options.stream == 0 { table::HOST } else { options.device };
        let memory = Memory { gpu, copied: options.copied_arguments };
        Ok(Self { module, options, device, stream, memory })
    }

    pub fn forward(&self, inputs: Vec<table::Value>) -> Result<Box<Outputs>, Failure> {
        let _mode = Mode::enter(self.options.inference_mode);
        let _no_gradient = tch::no_grad_guard();
        let switched = self.set_switches();
        // All of them before anything fails, because each has memory to give back.
        let arguments: Vec<_> = inputs
            .into_iter()
            // SAFETY: the caller of the table's `forward` vouches for the values.
            .map(|value| unsafe { input(value, self.memory) })
            .collect();
        switched?;
        let arguments = arguments.into_iter();
        let arguments = if self.options.dictionary {
            let entry = |(name, value)| Ok((IValue::String(name), self.moved_in(value)?));
            vec![IValue::GenericDict(arguments.map(entry).collect::<Result<_, Failure>>()?)]
        } else {
            arguments.map(|(_, value)| self.moved_in(value)).collect::<Result<_, _>>()?
        };
        let returned = self.module.forward_is(&arguments);
        drop(arguments);
        let results = outputs(returned?, self.memory)?;
        if self.options.cache_cleaning && libtorch::gpu_count() > 0 {
            libtorch::empty_cache()?;
        }
        Ok(results)
    }

    /// Some of torch's switches belong to the thread and some to the process, where another module
    /// may have changed them.
    fn set_switches(&self) -> Result<(), Failure> {
        thread_local! {
            static INTRA_OP_THREADS: Cell<i32> = const { Cell::new(0) };
        }
        let options = &self.options;
        let threads = options.intra_op_threads;
        if threads > 0 && INTRA_OP_THREADS.replace(threads) != threads {
            // The first use on a thread takes the number of the process, which another may have set.
            let _ = tch::get_num_threads();
            tch::set_num_threads(threads);
        }
        tch::jit::f_set_graph_executor_optimize(options.optimized_execution)?;
        if let Some(enabled) = switch(options.tensor_fuser) {
            tch::jit::f_set_tensor_expr_fuser_enabled(enabled)?;
        }
        if let Some(enabled) = switch(options.jit_profiling) {
            tch::jit::f_set_profiling_mode(enabled)?;
        }
        if let Some(enabled) = switch(options.jit_executor) {
            libtorch::set_executor(enabled);
        }
        if let Some(enabled) = switch(options.cudnn) {
            libtorch::set_cudnn(enabled);
        }
        self.stream.map_or(Ok(()), GpuStream::make_current)
    }

    /// An argument where the module is.
    fn moved_in(&self, argument: Result<IValue, Failure>) -> Result<IValue, Failure> {
        match (argument?, self.device) {
            (IValue::Tensor(tensor), Some(device @ Device::Cuda(_))) => {
                Ok(IValue::Tensor(tensor.f_to(device)?))
            }
            (argument, _) => Ok(argument),
        }
    }
}

fn switch(given: table::Switch) -> Option<bool> {
    (given != table::UNCHANGED).then_some(given == table::ON)
}

/// Torch ends the process when this is done twice, or after the first fork of a module.
fn set_inter_op_threads(threads: i32) -> Result<(), Failure> {
    use std::sync::OnceLock;
    static SET: OnceLock<i32> = OnceLock::new();
    let set = *SET.get_or_init(|| {
        tch::set_num_interop_threads(threads);
        threads
    });
    match set == threads {
        true => Ok(()),
        false => Err(Failure(format!(
            "the process runs modules with {set} inter-op threads; {threads} cannot be had any more"
        ))),
    }
}

fn no_gpu(gpu: i32, count: i32) -> String {
    match count {
        0 => format!(
            "GPU {gpu} cannot be used: this torch is built for the host alone, or finds no driver"
        ),
        _ => format!("GPU {gpu} is not there: torch finds {count} of them"),
    }
}
