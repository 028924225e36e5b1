//! From a response to an answer in the client's arena.

use std::sync::Arc;

use bytes::Bytes;
use compact_str::CompactString;
use nereid_ring::{Answer, Dims, Parameter as Described, Request, Span, Status, Tensor, Value};
use smallvec::SmallVec;

use crate::{
    inference::{Code, Error, InferResponse, Parameter},
    ingress::away::away,
    memory::{OutputPlaces, RingMemory, SharedView},
    serving::Reply,
};

/// Outputs of up to so many bytes are copied on the reactor: some 100 µs.
const COPIED_HERE_MAX: usize = 1 << 20;
/// Places of fewer bytes are not lent to models: to copy them is nothing beside that.
const LENT_MIN: u64 = 4096;
/// Outputs whose places the server chooses begin at a multiple of this: a cache line.
const OUTPUT_ALIGNMENT: u64 = 64;
const RECORD_ALIGNMENT: u64 = 8;

/// Where the answers to a request go.
pub struct Places {
    memory: Arc<RingMemory>,
    area: Span,
    /// Up to where answers have filled the area.
    used: u64,
    /// Outputs whose places the client has chosen.
    chosen: SmallVec<[(CompactString, Span); 2]>,
    /// The same for a model that writes there itself.
    lent: Option<Arc<OutputPlaces>>,
}

/// A reply that has found its places.
pub struct Laid {
    status: Status,
    /// Where the answer goes; of no length where there is no room for it.
    answer: Span,
    record: Vec<u8>,
    outputs: SmallVec<[(Span, Bytes); 2]>,
}

impl Places {
    /// Answers go to an area that nobody has looked at yet: one that does not lie within the arena takes
    /// none.
    pub fn in_area(memory: &Arc<RingMemory>, area: Span) -> Self {
        let area = memory.header.arena_range("an area", area).map_or(Span::default(), |_| area);
        Self {
            memory: memory.clone(),
            area,
            used: area.offset,
            chosen: SmallVec::new(),
            lent: None,
        }
    }

    /// Takes up the places that the client has chosen.
    ///
    /// # Errors
    /// When one, or the area, does not lie within the arena, or one lies over another.
    pub fn choose(&mut self, request: &Request<'_>) -> Result<(), Error> {
        let out_of_bounds =
            |what: String, error| Error::malformed(format!("{what} is out of bounds: {error}"));
        let header = &self.memory.header;
        header
            .arena_range("the area", request.area)
            .map_err(|error| out_of_bounds("the area for answers".to_owned(), error))?;
        for output in &request.outputs {
            let Some(place) = output.place else { continue };
            let name = output.name;
            header
                .arena_range("an output", place)
                .map_err(|error| out_of_bounds(format!("the place of output '{name}'"), error))?;
            let over = |what: String| {
                Error::malformed(format!("the place of output '{name}' lies over {what}"))
            };
            if place.overlaps(&self.area) {
                return Err(over("the area for answers".to_owned()));
            }
            if let Some((other, _)) = self.chosen.iter().find(|(_, other)| place.overlaps(other)) {
                return Err(over(format!("that of output '{other}'")));
            }
            self.chosen.push((name.into(), place));
        }
        Ok(())
    }

    /// Lends the places to the model, unless an input lies there: to write an output would change it. To be
    /// called once, with the places chosen.
    pub fn lend(&mut self, request: &Request<'_>) -> Option<Arc<OutputPlaces>> {
        let mut places = self.chosen.iter().map(|(_, place)| place).chain([&self.area]);
        let is_large = places.clone().any(|place| place.length >= LENT_MIN);
        let lies_over = |place: &Span| request.inputs.iter().any(|it| it.data.overlaps(place));
        if !is_large || places.any(lies_over) {
            return None;
        }
        let mut outputs = OutputPlaces::new();
        outputs
            .put_others(self.memory.view("the area", self.area).ok()?, OUTPUT_ALIGNMENT as usize);
        for (name, place) in &self.chosen {
            let view = self.memory.view("an output", *place).ok()?;
            outputs.put(name.clone(), SharedView::Ring(view));
        }
        self.lent = Some(Arc::new(outputs));
        self.lent.clone()
    }

    /// Keeps a model that has not begun from writing to the places. Returns whether one has, which may go on
    /// until it answers.
    pub fn take_back(&self) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.close())
    }

    /// Finds places for a reply. Nothing has been written there yet.
    pub fn lay_out(&mut self, reply: Reply) -> Laid {
        let used = self.used;
        let laid = reply.and_then(|response| self.lay_out_response(response));
        laid.unwrap_or_else(|error| {
            self.used = used;
            self.lay_out_failure(&error)
        })
    }

    /// Finds a place for a failure. Where the area has no room for the words, the status tells alone.
    pub fn lay_out_failure(&mut self, error: &Error) -> Laid {
        let status = status(error.code());
        let message = error.to_string();
        let mut record = Vec::new();
        let encoded = Answer::failed(status, &message).encode(&mut record);
        let answer = encoded.ok().and_then(|()| self.reserve(record.len(), RECORD_ALIGNMENT));
        if answer.is_none() {
            record.clear();
        }
        Laid { status, answer: answer.unwrap_or_default(), record, outputs: SmallVec::new() }
    }

    /// Writes what was laid out. Its status and its place are what the completion tells.
    pub async fn put(&mut self, laid: Laid) -> (Status, Span) {
        let (status, answer) = (laid.status, laid.answer);
        let length: usize = laid.outputs.iter().map(|(_, data)| data.len()).sum();
        let written = if length <= COPIED_HERE_MAX {
            laid.write(&self.memory)
        } else {
            let memory = self.memory.clone();
            away(move || laid.write(&memory)).await
        };
        let Err(error) = written else { return (status, answer) };
        // Nobody knows what was written, so the places stay taken.
        let laid = self.lay_out_failure(&error);
        let answer = laid.write(&self.memory).map_or(Span::default(), |()| laid.answer);
        (laid.status, answer)
    }

    fn lay_out_response(&mut self, mut response: InferResponse) -> Result<Laid, Error> {
        // What the model has written takes no place that others could get.
        let mut spans: SmallVec<[Option<Span>; 2]> = SmallVec::new();
        for output in &response.outputs {
            spans.push(self.written(&output.name, &output.data));
        }
        let mut outputs = SmallVec::new();
        for (output, span) in response.outputs.iter_mut().zip(&mut spans) {
            if span.is_none() {
                let place = self.place(&output.name, output.data.len())?;
                outputs.push((place, std::mem::take(&mut output.data)));
                *span = Some(place);
            }
        }
        let record = record(&response, spans.into_iter().flatten())?;
        let answer = self.reserve(record.len(), RECORD_ALIGNMENT);
        let answer = answer.ok_or_else(|| self.used_up("the answer", record.len()))?;
        Ok(Laid { status: Status::Ok, answer, record, outputs })
    }

    /// Where an output lies, if the model has written it to its place. The area is used up to there.
    fn written(&mut self, name: &str, data: &[u8]) -> Option<Span> {
        self.lent.as_ref()?;
        let span = self.memory.span_of(data)?;
        match self.chosen.iter().find(|(chosen, _)| chosen == name) {
            Some((_, chosen)) => {
                (span.offset == chosen.offset && span.length <= chosen.length).then_some(span)
            }
            None => {
                let (end, area_end) =
                    (span.offset + span.length, self.area.offset + self.area.length);
                let is_in_area = self.area.offset <= span.offset && end <= area_end;
                is_in_area.then(|| {
                    self.used = self.used.max(end);
                    span
                })
            }
        }
    }

    fn place(&mut self, name: &str, length: usize) -> Result<Span, Error> {
        let chosen = self.chosen.iter().find(|(chosen, _)| chosen == name);
        let Some((_, chosen)) = chosen else {
            let place = self.reserve(length, OUTPUT_ALIGNMENT);
            return place.ok_or_else(|| self.used_up(&format!("output '{name}'"), length));
        };
        if length as u64 > chosen.length {
            let (output, got) = (name.to_owned(), chosen.length as usize);
            return Err(Error::OutputRegionTooSmall { output, expected: length, got });
        }
        Ok(Span { offset: chosen.offset, length: length as u64 })
    }

    /// The next bytes of the area that are free, if there are so many.
    fn reserve(&mut self, length: usize, alignment: u64) -> Option<Span> {
        let offset = self.used.checked_next_multiple_of(alignment)?;
        let end = offset.checked_add(length as u64)?;
        if end > self.area.offset + self.area.length {
            return None;
        }
        self.used = end;
        Some(Span { offset, length: length as u64 })
    }

    fn used_up(&self, what: &str, length: usize) -> Error {
        let left = (self.area.offset + self.area.length).saturating_sub(self.used);
        Error::malformed(format!(
            "the request's area for answers is too small: {what} takes {length} bytes, {left} of {} \
             are left",
            self.area.length
        ))
    }
}

impl Laid {
    fn write(&self, memory: &RingMemory) -> Result<(), Error> {
        let outputs = self.outputs.iter().map(|(place, data)| (*place, &**data));
        for (place, bytes) in outputs.chain([(self.answer, &*self.record)]) {
            let at = memory.header.arena_range("a place for an answer", place);
            let at = at.map_err(|error| Error::Internal { detail: error.to_string() })?;
            memory.memory().write(at, bytes);
        }
        Ok(())
    }
}

fn record(response: &InferResponse, spans: impl Iterator<Item = Span>) -> Result<Vec<u8>, Error> {
    let outputs = response.outputs.iter().zip(spans).map(|(output, data)| Tensor {
        name: &output.name,
        datatype: output.datatype.numbered(),
        dims: Dims::from_slice(&output.shape),
        data,
    });
    let parameters = response.parameters.iter().map(|(name, value)| Described {
        name,
        value: match value {
            Parameter::Bool(value) => Value::Bool(*value),
            Parameter::Int(value) => Value::Int(*value),
            Parameter::Uint(value) => Value::Uint(*value),
            Parameter::Double(value) => Value::Double(*value),
            Parameter::String(text) => Value::Text(text),
        },
    });
    let answer = Answer {
        status: Status::Ok,
        message: "",
        model: &response.model_name,
        version: response.model_version,
        id: &response.id,
        outputs: outputs.collect(),
        parameters: parameters.collect(),
    };
    let mut record = Vec::with_capacity(256);
    let encoded = answer.encode(&mut record);
    encoded.map_err(|error| Error::Internal { detail: error.to_string() })?;
    Ok(record)
}

fn status(code: Code) -> Status {
    match code {
        Code::Unknown => Status::Unknown,
        Code::Internal => Status::Internal,
        Code::NotFound => Status::NotFound,
        Code::InvalidArgument => Status::InvalidArgument,
        Code::Unavailable => Status::Unavailable,
        Code::Unsupported => Status::Unsupported,
        Code::AlreadyExists => Status::AlreadyExists,
        Code::Cancelled => Status::Cancelled,
    }
}
