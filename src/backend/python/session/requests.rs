//! Requests that the process has, and their responses.

use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{INLINE_BYTES_MAX, ROOM_WAIT_MAX, Session, lock};
use crate::{
    backend::{
        ModelRequest, ModelResponse, Responder, ResponseError, ResponseTensor,
        python::{
            Outline,
            arena::NotThere,
            json,
            wire::{self, Correlation, Place, Writer},
        },
    },
    inference::{Code, CorrelationId, DataType, Rope, Shape},
    observe::trace::OuterTrace,
};

/// A request that the process has.
pub(super) struct Taken {
    pub(super) responder: Responder,
    pub(super) trace: Option<OuterTrace>,
}

impl Session {
    pub(super) fn write_request(
        &self,
        writer: &mut Writer,
        outline: &Outline,
        request: &ModelRequest,
        number: u64,
    ) -> Result<(), ResponseError> {
        let sequence = request.sequence.as_deref();
        let correlation = match sequence.map(|sequence| &sequence.id) {
            Some(CorrelationId::Text(text)) => Correlation::Text(text.clone()),
            Some(CorrelationId::Number(number)) => Correlation::Number(*number),
            None => Correlation::Number(0),
        };
        let flag = |flag: Option<bool>, bit: u32| u32::from(flag == Some(true)) * bit;
        let timeout = request.queue_timeout.map_or(0, |timeout| timeout.as_micros());
        let context = request.trace.as_ref().and_then(OuterTrace::context);
        let head = wire::Request {
            number,
            id: &request.id,
            timeout_us: u64::try_from(timeout).unwrap_or(u64::MAX),
            correlation: &correlation,
            flags: flag(sequence.map(|it| it.start), 1) | flag(sequence.map(|it| it.end), 2),
            parameters: &json::of_parameters(&request.parameters),
            trace: context.as_deref().unwrap_or_default(),
        };
        let inputs = request.tensors.inputs.iter().zip(&outline.signature.inputs);
        let inputs: SmallVec<[_; 4]> =
            inputs.filter_map(|(input, spec)| Some((input.as_ref()?, spec))).collect();
        let wanted: SmallVec<[&str; 4]> = request
            .tensors
            .outputs
            .iter()
            .filter_map(|&output| outline.signature.outputs.get(usize::from(output)))
            .map(|spec| &*spec.name)
            .collect();
        let sizes = inputs.iter().map(|(input, _)| input.data.len());
        let large = sizes.filter(|&size| size > INLINE_BYTES_MAX).sum();
        if large > self.arena.half() {
            return Err(ResponseError { code: Code::Unavailable, message: self.no_room(large) });
        }
        let before = writer.mark();
        writer.request(&head, inputs.len(), wanted.into_iter());
        let mut lent: SmallVec<[wire::Range; 4]> = SmallVec::new();
        for (input, spec) in inputs {
            let written =
                self.write_tensor(writer, &spec.name, spec.datatype, &input.shape, &input.data);
            match written {
                Ok(range) => lent.extend(range),
                Err(error) => {
                    writer.undo(before);
                    for range in lent {
                        // It was lent a moment ago, and the process has never heard of it.
                        let _ = self.arena.take_back(range.offset);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes a tensor into a frame, or into shared memory if it is large: then it tells where.
    fn write_tensor(
        &self,
        writer: &mut Writer,
        name: &str,
        datatype: DataType,
        shape: &Shape,
        data: &Rope,
    ) -> Result<Option<wire::Range>, ResponseError> {
        let pieces = || data.pieces().iter().map(|piece| &**piece);
        if data.len() <= INLINE_BYTES_MAX {
            writer.inline(name, datatype, shape, data.len(), pieces());
            return Ok(None);
        }
        let range = self.lend(data.len(), pieces)?;
        writer.lent(name, datatype, shape, range);
        Ok(Some(range))
    }

    /// Lends memory, waiting for room if there is none.
    fn lend<'p, I: Iterator<Item = &'p [u8]>>(
        &self,
        length: usize,
        pieces: impl Fn() -> I,
    ) -> Result<wire::Range, ResponseError> {
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        loop {
            if let Some(range) = self.arena.lend(length, pieces()) {
                return Ok(range);
            }
            let is_dead = lock(&self.execution).is_dead;
            if length > self.arena.half() || is_dead || Instant::now() >= deadline {
                let message = self.no_room(length);
                return Err(ResponseError { code: Code::Unavailable, message });
            }
            let mut writer = Writer::default();
            writer.flush();
            self.line.send(writer);
            self.arena.wait_for_room(Duration::from_millis(20));
        }
    }

    pub(super) fn no_room(&self, length: usize) -> String {
        format!(
            "no room for {length} bytes of tensors in shared memory: a model instance may hold {}, half \
             of shm-limit-byte-size, and holds {}",
            self.arena.half(),
            self.arena.lent_bytes()
        )
    }

    /// Whether nobody waits for the answer to a request any more; so it is if it was answered.
    pub fn is_cancelled(&self, number: u64) -> bool {
        lock(&self.requests).get(&number).is_none_or(|taken| taken.responder.is_cancelled())
    }

    /// The trace of a request that has not been answered, if it is traced.
    pub fn trace_of(&self, number: u64) -> Option<OuterTrace> {
        lock(&self.requests).get(&number)?.trace.clone()
    }

    /// Ends requests that the process let go of.
    pub fn let_go(&self, outline: &Outline, numbers: &[u64]) {
        for &number in numbers {
            self.fail(number, Code::Internal, outline.let_go());
        }
    }

    pub(super) fn fail(&self, number: u64, code: Code, message: String) {
        if let Some(responder) = self.take_request(number) {
            responder.finish(Err(ResponseError { code, message }));
        }
    }

    pub(super) fn take_request(&self, number: u64) -> Option<Responder> {
        lock(&self.requests).remove(&number).map(|taken| taken.responder)
    }

    /// Gives a response of the process to the request's client.
    ///
    /// # Errors
    /// When the process names memory that it does not have.
    pub fn respond(&self, outline: &Outline, response: wire::Response) -> Result<(), NotThere> {
        let wire::Response { number, is_last, outcome } = response;
        let outcome = match outcome {
            None => None,
            Some(Ok(outputs)) => Some(Ok(self.model_response(outline, outputs)?)),
            Some(Err(wire::Failure { code, message })) => {
                Some(Err(ResponseError { code, message }))
            }
        };
        match (is_last, outcome) {
            (true, outcome) => {
                if let Some(responder) = self.take_request(number) {
                    match outcome {
                        Some(last) => responder.finish(last),
                        None => responder.close(),
                    }
                }
            }
            (false, Some(outcome)) => {
                if let Some(taken) = lock(&self.requests).get_mut(&number) {
                    taken.responder.send(outcome);
                }
            }
            (false, None) => {}
        }
        Ok(())
    }

    fn model_response(
        &self,
        outline: &Outline,
        outputs: wire::Outputs,
    ) -> Result<ModelResponse, NotThere> {
        let mut response = ModelResponse {
            parameters: json::to_parameters(&outputs.parameters),
            ..ModelResponse::default()
        };
        for tensor in outputs.tensors {
            let data = self.data(&tensor)?;
            // What the configuration does not know, nobody can have asked for.
            let Some(output) = outline.output(&tensor.name) else { continue };
            let wire::Tensor { datatype, shape, .. } = tensor;
            response.outputs.push(ResponseTensor { output, datatype, shape, data });
        }
        Ok(response)
    }

    /// The bytes of a tensor of the process.
    ///
    /// # Errors
    /// When the process does not have the memory that it names.
    pub fn data(&self, tensor: &wire::Tensor) -> Result<Bytes, NotThere> {
        let data = match &tensor.place {
            Place::Inline(bytes) => return Ok(bytes.clone()),
            Place::Sender(range) => self.arena.borrowed(*range)?,
            Place::Receiver(range) => self.arena.own(*range)?,
        };
        // Strings are interpreted, so they must not change any more.
        Ok(if tensor.datatype == DataType::Bytes { Bytes::copy_from_slice(&data) } else { data })
    }
}
