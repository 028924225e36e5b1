//! A loaded module, and how it runs.

use std::{ptr::NonNull, sync::OnceLock};

use tch::{Device, Tensor};

use crate::{
    Failure,
    libtorch::{self, GpuStream, IValue, Memory, Mode, Script},
    switches,
    table::{self, Options, Results},
    values::{Argument, argument},
};

pub struct Module {
    script: Script,
    options: Options,
    device: Option<Device>,
    stream: Option<GpuStream>,
    memory: Memory,
}

impl Module {
    pub fn load(path: &str, options: Options) -> Result<Self, Failure> {
        libtorch::keep_host_memory();
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
        let script = Script::load(path, options.device)?;
        let gpu = if options.stream == 0 { table::HOST } else { options.device };
        let memory = Memory { gpu, copied: options.copied_arguments };
        Ok(Self { script, options, device, stream, memory })
    }

    /// The results are the caller's to free, by [`libtorch::free_results`].
    pub fn forward(&self, inputs: Vec<table::Value>) -> Result<NonNull<Results>, Failure> {
        let _mode = Mode::enter(self.options.inference_mode);
        let _no_gradient = tch::no_grad_guard();
        // All of them before anything fails, because each has memory to give back.
        let arguments: Vec<_> = inputs
            .into_iter()
            // SAFETY: the caller of the table's `forward` vouches for the values.
            .map(|value| unsafe { argument(value, self.memory) })
            .collect();
        let _switches = switches::hold(&self.options)?;
        self.stream.map_or(Ok(()), GpuStream::make_current)?;
        let arguments = match self.options.dictionary {
            true => vec![self.dictionary(arguments)?],
            false => {
                let values = arguments.into_iter().map(|(_, argument)| self.moved_in(argument?));
                values
                    .map(|argument| argument?.into_value())
                    .collect::<Result<Vec<IValue>, Failure>>()?
            }
        };
        let results = self.script.forward(arguments, self.memory.gpu)?;
        if self.options.cache_cleaning
            && libtorch::gpu_count() > 0
            && let Err(failure) = libtorch::empty_cache()
        {
            // SAFETY: nobody else has them.
            unsafe { libtorch::free_results(results.as_ptr()) };
            return Err(failure);
        }
        Ok(results)
    }

    fn dictionary(
        &self,
        arguments: Vec<(String, Result<Argument, Failure>)>,
    ) -> Result<IValue, Failure> {
        let entries =
            arguments.into_iter().map(|(name, argument)| match self.moved_in(argument?)? {
                Argument::Tensor(tensor) => Ok((name, tensor)),
                Argument::Other(_) => Err(Failure(format!("entry '{name}' is no tensor"))),
            });
        IValue::dictionary(&entries.collect::<Result<Vec<(String, Tensor)>, Failure>>()?)
    }

    /// An argument where the module is.
    fn moved_in(&self, argument: Argument) -> Result<Argument, Failure> {
        match (argument, self.device) {
            (Argument::Tensor(tensor), Some(device @ Device::Cuda(_))) => {
                Ok(Argument::Tensor(tensor.f_to(device)?))
            }
            (argument, _) => Ok(argument),
        }
    }
}

/// Torch ends the process when this is done twice, or after the first fork of a module.
fn set_inter_op_threads(threads: i32) -> Result<(), Failure> {
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
