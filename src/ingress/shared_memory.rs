//! Tensors that lie in shared memory: what a request names becomes bytes, and outputs go where they are
//! to go.

use std::sync::Arc;

use compact_str::CompactString;
use smallvec::SmallVec;

use super::away::away;
use crate::{
    inference::{Error, InferRequest, InferResponse, Rope},
    memory::{BufferPool, OutputPlaces, RegionView, SharedView},
    serving::{DeviceTensors, DeviceView, Server},
};

/// Tensors of up to so many bytes are copied on the reactor: some 100 µs.
const COPIED_HERE_MAX: usize = 1 << 20;

/// The regions that a request uses. They stay mapped until it is dropped.
#[derive(Debug, Default)]
pub struct SharedTensors(Option<Box<Places>>);

#[derive(Debug, Default)]
struct Places {
    inputs: SmallVec<[RegionView; 1]>,
    outputs: SmallVec<[(CompactString, RegionView); 1]>,
    /// Those of the outputs that a model may write itself.
    lent: Option<Arc<OutputPlaces>>,
    device_outputs: SmallVec<[DeviceOutput; 1]>,
}

/// An output that goes to the memory of a device.
#[derive(Debug)]
struct DeviceOutput {
    name: CompactString,
    view: DeviceView,
    /// Whether the model's own device puts it there.
    is_direct: bool,
}

impl SharedTensors {
    /// Looks up what the request names and puts the bytes of its inputs in place.
    ///
    /// Floating-point numbers are read where they lie, for any bits are a number. Everything else is
    /// copied first: a client that changed an index or the length of a string after it was checked
    /// would lead the model out of its memory.
    ///
    /// # Errors
    /// When a region is unknown, a range does not lie within it, two outputs would lie over each other,
    /// memory for a copy is used up, or a device fails.
    pub async fn resolve(request: &mut InferRequest, server: &Server) -> Result<Self, Error> {
        if !Self::are_named_by(request) {
            return Ok(Self(None));
        }
        let (regions, pool, devices) = (server.regions(), server.pool(), server.device_regions());
        // Tensors in the memory of its devices never come to the host.
        let version = server.version(&request.model_name, &request.model_version).ok();
        let version = version.as_ref();
        let takes_on = |name: &str| version.and_then(|it| it.takes_on(it.signature.input(name)?));
        let puts_on = |name: &str| version.and_then(|it| it.puts_on(it.signature.output(name)?));
        let mut on_device = DeviceTensors::default();
        let mut places = Box::new(Places::default());
        for input in &mut request.inputs {
            let Some(range) = input.source.take() else { continue };
            if let Some(view) = devices.view(&range)? {
                let is_there = takes_on(&input.name) == Some(view.device());
                if is_there && input.datatype.size().is_some() && !view.is_empty() {
                    input.data = Rope::absent(view.len());
                    on_device.inputs.push((input.name.clone(), view));
                    request.inputs_may_change = true;
                } else {
                    input.data = view.fetch(pool).await?.into();
                }
                continue;
            }
            let view = regions.view(&range)?;
            let bytes = match input.datatype {
                datatype if datatype.is_float() => {
                    request.inputs_may_change = true;
                    view.clone().in_place()
                }
                _ if view.len() > COPIED_HERE_MAX => {
                    let (view, pool) = (view.clone(), pool.clone());
                    away(move || Ok(view.copied(&pool)?)).await?
                }
                _ => view.copied(pool)?,
            };
            view.check_whole()?;
            input.data = bytes.into();
            places.inputs.push(view);
        }
        for output in &request.outputs {
            let Some(range) = &output.target else { continue };
            let lies_over = |other: &str| {
                Error::malformed(format!(
                    "the place of output '{}' in shared memory region '{}' lies over that of output \
                     '{other}'",
                    output.name, range.region
                ))
            };
            if let Some(view) = devices.view(range)? {
                let others = &places.device_outputs;
                if let Some(other) = others.iter().find(|it| view.overlaps(&it.view)) {
                    return Err(lies_over(other.name.as_str()));
                }
                let is_there = puts_on(&output.name) == Some(view.device());
                let is_direct = is_there && output.classification == 0;
                if is_direct {
                    on_device.outputs.push((output.name.clone(), view.clone()));
                }
                places.device_outputs.push(DeviceOutput {
                    name: output.name.clone(),
                    view,
                    is_direct,
                });
                continue;
            }
            let view = regions.view(range)?;
            if let Some((other, _)) = places.outputs.iter().find(|(_, it)| view.overlaps(it)) {
                return Err(lies_over(other.as_str()));
            }
            places.outputs.push((output.name.clone(), view));
        }
        if !on_device.inputs.is_empty() || !on_device.outputs.is_empty() {
            request.on_device = Some(Arc::new(on_device));
        }
        places.lent = places.lendable();
        Ok(Self(Some(places)))
    }

    /// Where the model may write outputs itself.
    pub fn outputs(&self) -> Option<Arc<OutputPlaces>> {
        self.0.as_ref()?.lent.clone()
    }

    /// Whether a request names any.
    pub fn are_named_by(request: &InferRequest) -> bool {
        request.inputs.iter().any(|input| input.source.is_some())
            || request.outputs.iter().any(|output| output.target.is_some())
    }

    /// Writes the outputs that go to regions there. Their data is gone from the response then. What is
    /// sent lies in no region any more: the socket could not read what a client takes away.
    ///
    /// # Errors
    /// When an output does not fit its place, or the client cut a region short meanwhile, or memory for
    /// a copy is used up.
    pub async fn deliver(
        &self,
        mut response: InferResponse,
        pool: &BufferPool,
    ) -> Result<InferResponse, Error> {
        let Some(places) = &self.0 else { return Ok(response) };
        for (name, view) in &places.outputs {
            let output = response.outputs.iter_mut().find(|output| *output.name == **name);
            let Some(output) = output else { continue };
            let data = std::mem::take(&mut output.data);
            if view.begins_with(&data) && data.len() <= view.len() {
                view.check_whole()?;
                continue;
            }
            if data.len() > view.len() {
                let (expected, got) = (data.len(), view.len());
                return Err(Error::OutputRegionTooSmall {
                    output: name.to_string(),
                    expected,
                    got,
                });
            }
            let is_long = data.len() > COPIED_HERE_MAX;
            let view = view.clone();
            let copy = move || {
                view.write(&data);
                view.check_whole()
            };
            match is_long {
                true => away(copy).await?,
                false => copy()?,
            }
        }
        for DeviceOutput { name, view, is_direct } in &places.device_outputs {
            let output = response.outputs.iter_mut().find(|output| *output.name == **name);
            let Some(output) = output else { continue };
            let data = std::mem::take(&mut output.data);
            let elements = output.shape.element_count().zip(output.datatype.size());
            let by_shape = elements.and_then(|(count, size)| count.checked_mul(size as u64));
            let expected = match *is_direct {
                true => {
                    by_shape.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX)
                }
                false => data.len(),
            };
            if expected > view.len() {
                let (output, got) = (name.to_string(), view.len());
                return Err(Error::OutputRegionTooSmall { output, expected, got });
            }
            if !data.is_empty() {
                view.store(data).await?;
            }
        }
        for output in &mut response.outputs {
            if places.inputs.iter().any(|input| input.is_home_of(&output.data)) {
                let mut copy = pool.allocate(output.data.len())?;
                copy.copy_from_slice(&output.data);
                output.data = copy.freeze();
            }
        }
        for input in &places.inputs {
            input.check_whole()?;
        }
        Ok(response)
    }
}

impl Places {
    /// The outputs that lie over no input, so that to write one changes nothing that is still to be read.
    fn lendable(&self) -> Option<Arc<OutputPlaces>> {
        let mut lent = OutputPlaces::new();
        for (name, view) in &self.outputs {
            if !self.inputs.iter().any(|input| view.overlaps(input)) {
                lent.put(name.clone(), SharedView::Region(view.clone()));
            }
        }
        (!lent.is_empty()).then(|| Arc::new(lent))
    }
}
