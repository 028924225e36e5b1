//! A model that is a chain of operations instead of a file: the parameter `chain` of its
//! configuration lists them. Pictures are decoded, cropped, resized, normalised and laid out in one
//! pass; sequences are padded, entries gathered; softmax, top-k, argmax and non-maximum suppression
//! come after a model.
//!
//! `chain` reads the words, `plan` and `operation` understand them, `joined` makes one of neighbours on
//! pictures; `run` does the work with the kernels' twins, `images` that on pictures, whose sizes
//! `picture` knows, and whose files `decode`; `on_device` does it on a device; `instances` is
//! for those who hand either a batch. What steps make of the shapes of
//! their inputs, `shapes` says for both. This room knows tensors, kernels, devices and memory. It must not know
//! schedulers or wire formats.

mod chain;
mod decode;
mod images;
mod instances;
mod joined;
mod on_device;
mod operation;
mod picture;
mod plan;
mod run;
mod shapes;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use self::{
    chain::{Operation, Step},
    instances::{OnRequests, OnTensors},
    on_device::Launches,
    plan::{Form, Plan, Slot, Work},
    run::{RunError, Value},
};
use super::{
    Backend, BackendError, BatchOutputs, BatchTensor, DeviceInstance, Direct, Host, InlineFitness,
    Model, ModelInstance, ModelIo, ModelIoTensor, ModelSource, Placement, PlacementDevice,
};
use crate::{
    device::{Devices, streams::Runner},
    inference::{DataType, Shape, Signature, TensorSpec},
    memory::{BufferPool, Exhausted},
    proto::ModelConfig,
};

/// The parameter that holds a model's steps.
const PARAMETER: &str = "chain";
/// What a chain's only input and its last tensor are called where nothing names them.
const INPUT: &str = "INPUT";
const OUTPUT: &str = "OUTPUT";

/// The back end `ops`.
pub struct Ops {
    devices: Arc<Devices>,
}

impl Ops {
    /// One whose models can run on `devices`, and on the processors.
    pub fn new(devices: Arc<Devices>) -> Self {
        Self { devices }
    }
}

impl Backend for Ops {
    fn name(&self) -> &'static str {
        "ops"
    }

    fn inspect(&self, source: &ModelSource) -> Result<Option<ModelIo>, BackendError> {
        let steps = steps(source)?;
        let config = &*source.config;
        let Some(inputs) = told_inputs(config).or_else(|| implied_inputs(&steps)) else {
            return Ok(None);
        };
        let plan = plan(source, &steps, &inputs, sole_output(config))?;
        // Rows are independent, so whatever has been left open can have a batch dimension.
        let has_batch = config.max_batch_size > 0 || config.input.is_empty();
        let wanted = config.output.iter().map(|output| &output.name);
        Ok(Some(describe(&plan, &inputs, wanted, has_batch)))
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        let steps = steps(source)?;
        let Signature { inputs, outputs, max_batch_size, .. } = &*source.signature;
        if let Some(optional) = inputs.iter().find(|input| input.optional) {
            return Err(BackendError(format!(
                "input '{}' of model '{}' is optional: a chain needs all of its inputs",
                optional.name, source.name
            )));
        }
        let given: Vec<_> =
            inputs.iter().map(|input| (input.name.to_string(), form(input))).collect();
        let plan = plan(source, &steps, &given, sole_output(&source.config))?;
        let results =
            outputs.iter().map(|output| result(source, &plan, output)).collect::<Result<_, _>>()?;
        let loaded = Arc::new(Loaded { plan, results, has_batch: *max_batch_size > 0 });
        let name = source.name.clone();
        let launches = Launches::of(&loaded).map(Arc::new);
        Ok(Arc::new(Chain { name, loaded, launches, devices: self.devices.clone() }))
    }
}

fn steps(source: &ModelSource) -> Result<Vec<Step>, BackendError> {
    let parameter = source.config.parameters.get(PARAMETER).ok_or_else(|| {
        BackendError(format!(
            "model '{}' of back end 'ops' has no parameter '{PARAMETER}': expected a list of steps \
             in JSON",
            source.name
        ))
    })?;
    chain::parse(&parameter.string_value).map_err(|fault| in_chain(source, &fault))
}

fn plan(
    source: &ModelSource,
    steps: &[Step],
    inputs: &[(String, Form)],
    result: Option<&str>,
) -> Result<Plan, BackendError> {
    Plan::new(steps, inputs, result.unwrap_or(OUTPUT)).map_err(|fault| in_chain(source, &fault))
}

fn in_chain(source: &ModelSource, fault: &str) -> BackendError {
    BackendError(format!("parameter '{PARAMETER}' of model '{}': {fault}", source.name))
}

/// The name of a configuration's only output.
fn sole_output(config: &ModelConfig) -> Option<&str> {
    match &*config.output {
        [only] => Some(&only.name),
        _ => None,
    }
}

/// The inputs of a configuration that says all of them.
fn told_inputs(config: &ModelConfig) -> Option<Vec<(String, Form)>> {
    let inputs = config.input.iter().map(|input| {
        let dims = match &input.reshape {
            Some(reshape) => &reshape.shape,
            None => &input.dims,
        };
        let datatype = DataType::from_config(input.data_type())?;
        let is_said = !input.dims.is_empty();
        let form = Form { datatype, dims: Shape::from(dims.as_slice()) };
        is_said.then(|| (input.name.clone(), form))
    });
    let inputs: Option<Vec<_>> = inputs.collect();
    inputs.filter(|inputs| !inputs.is_empty())
}

/// The inputs of a chain that begins with files, whose type needs no saying.
fn implied_inputs(steps: &[Step]) -> Option<Vec<(String, Form)>> {
    let mut made = BTreeSet::new();
    let mut inputs: Vec<(String, Form)> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let file = Form { datatype: DataType::Bytes, dims: Shape::from([1]) };
        let unnamed = (index == 0 && step.inputs.is_empty()).then(|| INPUT.to_owned());
        for name in unnamed.iter().chain(&step.inputs) {
            let is_known = made.contains(name) || inputs.iter().any(|(input, _)| input == name);
            match step.operation {
                _ if is_known => {}
                Operation::Decode { .. } => inputs.push((name.clone(), file.clone())),
                _ => return None,
            }
        }
        made.extend(step.outputs.iter().cloned());
    }
    Some(inputs)
}

fn describe<'a>(
    plan: &'a Plan,
    inputs: &[(String, Form)],
    wanted: impl Iterator<Item = &'a String>,
    has_batch: bool,
) -> ModelIo {
    let tensor = |name: &String, form: &Form| ModelIoTensor {
        name: name.clone(),
        datatype: form.datatype,
        dims: if has_batch { form.dims.with_batch(-1) } else { form.dims.clone() },
    };
    // What a later step takes is an output only where the configuration says so.
    let taken = wanted.filter(|name| !plan.results.contains(name));
    let outputs = plan.results.iter().chain(taken).filter_map(|name| {
        let form = plan.forms.get(*plan.names.get(name)?)?;
        Some(tensor(name, form))
    });
    ModelIo {
        inputs: inputs.iter().map(|(name, form)| tensor(name, form)).collect(),
        outputs: outputs.collect(),
    }
}

/// A tensor as the model sees it.
fn form(spec: &TensorSpec) -> Form {
    Form { datatype: spec.datatype, dims: spec.reshape.as_ref().unwrap_or(&spec.dims).clone() }
}

/// Where in the chain an output of the configuration is.
fn result(source: &ModelSource, plan: &Plan, output: &TensorSpec) -> Result<Slot, BackendError> {
    let expected = form(output);
    let Some(&slot) = plan.names.get(&*output.name) else {
        return Err(BackendError(format!(
            "output '{}' of model '{}' is not made by its chain, which makes '{}'",
            output.name,
            source.name,
            plan.results.join("', '")
        )));
    };
    let made = &plan.forms[slot];
    let fits = made.datatype == expected.datatype
        && made.dims.len() == expected.dims.len()
        && made.dims.iter().zip(&*expected.dims).all(|(&a, &b)| a == b || a < 0 || b < 0);
    if fits {
        return Ok(slot);
    }
    Err(BackendError(format!(
        "output '{}' of model '{}' is {made} by its chain: the configuration has {expected}",
        output.name, source.name
    )))
}

/// A chain, ready to give instances.
struct Chain {
    name: Arc<str>,
    loaded: Arc<Loaded>,
    /// The chain as a device runs it, if it can.
    launches: Option<Arc<Launches>>,
    devices: Arc<Devices>,
}

/// What the instances of a chain share.
struct Loaded {
    plan: Plan,
    /// Where the outputs of the signature are, in its order.
    results: Vec<Slot>,
    has_batch: bool,
}

impl Model for Chain {
    fn instance(
        &self,
        placement: &Placement,
        _: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        let device = self.on_device(placement)?.map(Direct::of).transpose()?;
        let chain = self.loaded.clone();
        Ok(match device {
            _ if chain.can_fail() => {
                ModelInstance::Requests(Box::new(OnRequests { chain, device }))
            }
            Some(device) => ModelInstance::Batches(Box::new(device)),
            None => ModelInstance::Batches(Box::new(OnTensors(chain))),
        })
    }

    fn on_device(&self, placement: &Placement) -> Result<Option<DeviceInstance>, BackendError> {
        let PlacementDevice::Gpu(number) = placement.device else { return Ok(None) };
        let (name, instance) = (&self.name, &placement.name);
        let Some(launches) = &self.launches else {
            log::info!(
                "instance '{instance}' of model '{name}' runs on the processors: its chain has steps \
                 that no device runs"
            );
            return Ok(None);
        };
        let device = self.devices.get(usize::try_from(number).unwrap_or(usize::MAX));
        let device = device.map_err(|reason| {
            BackendError(format!("instance '{instance}' of model '{name}': {reason}"))
        })?;
        let compute = Launches::load(launches, &**device);
        let runner = compute.and_then(|compute| Runner::open(&**device, compute));
        let runner = runner.map_err(|error| BackendError(error.to_string()))?;
        Ok(Some(DeviceInstance { device: device.clone(), model: launches.clone(), runner }))
    }

    fn inline_fitness(&self) -> InlineFitness {
        match self.loaded.can_fail() {
            true => InlineFitness::Never,
            false => InlineFitness::IfFast,
        }
    }
}

impl Loaded {
    /// Whether a request's content can be at fault, as that of a file. The others of its batch shall
    /// not suffer for it.
    fn can_fail(&self) -> bool {
        let is_fallible = |work: &Work| {
            matches!(work, Work::Image { .. } | Work::Gather | Work::Pad { .. } | Work::Unpad)
        };
        self.plan.stages.iter().any(|stage| is_fallible(&stage.work))
    }

    /// Runs the chain over the tensors of its inputs, each with its shape, the batch dimension
    /// included.
    fn run(
        &self,
        rows: usize,
        inputs: impl Iterator<Item = (Shape, Bytes)>,
        pool: &BufferPool,
    ) -> Result<BatchOutputs, RunError> {
        let rows = if self.has_batch { rows } else { 1 };
        let inputs = inputs.zip(&self.plan.forms).map(|((shape, data), form)| {
            let dims = shape.iter().skip(usize::from(self.has_batch)).copied().collect();
            let data = aligned(data, form.datatype, pool)?;
            Ok(Value { datatype: form.datatype, dims, data })
        });
        let inputs = inputs.collect::<Result<_, Exhausted>>()?;
        let mut values = run::run(&self.plan, rows, inputs, pool)?;
        let outputs = self.results.iter().map(|&slot| {
            let value = values.get_mut(slot)?.clone()?;
            let shape = match self.has_batch {
                true => value.dims.with_batch(rows as i64),
                false => value.dims,
            };
            Some(BatchTensor { shape, data: value.data })
        });
        Ok(outputs.collect())
    }
}

/// The elements where they are, or in memory of ours if they do not lie there as their type must.
fn aligned(data: Bytes, datatype: DataType, pool: &BufferPool) -> Result<Bytes, Exhausted> {
    if data.as_ptr().addr().is_multiple_of(datatype.size().unwrap_or(1)) {
        return Ok(data);
    }
    let mut buffer = pool.allocate(data.len())?;
    buffer.copy_from_slice(&data);
    Ok(buffer.freeze())
}
