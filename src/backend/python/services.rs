//! What the server does for a model's process: calls of other models, questions.

use std::{sync::Arc, time::Duration};

use super::{
    Outline, json,
    session::Session,
    wire::{self, Call, Correlation, Gone, Question, Writer, questions},
};
use crate::{
    backend::Host,
    inference::{CorrelationId, Error, InferInput, InferRequest, RequestedOutput, Sequence},
};

/// Everything that a process can use of the server; nothing while it only completes a configuration.
#[derive(Clone, Default)]
pub struct Services {
    host: Option<Arc<Host>>,
}

impl Services {
    /// Those of `host`.
    pub fn new(host: &Arc<Host>) -> Self {
        Self { host: Some(host.clone()) }
    }

    /// Calls another model for the process.
    pub fn call(&self, session: &Arc<Session>, outline: &Arc<Outline>, call: Call) {
        let number = call.number;
        let is_decoupled = call.is_decoupled;
        session.begin_call(number);
        let asked = self.request(session, call).and_then(|request| {
            let host = self.host.as_ref().ok_or(Error::NotReady)?;
            let (session, outline) = (session.clone(), outline.clone());
            host.models.ask(
                request,
                Box::new(move |answer| session.answer_call(&outline, number, is_decoupled, answer)),
            )
        });
        match asked {
            Ok(asked) => session.hold_call(number, asked),
            Err(error) => session.refuse_call(number, &error),
        }
    }

    fn request(&self, session: &Session, call: Call) -> Result<InferRequest, Error> {
        let mut request = InferRequest {
            model_name: call.model,
            model_version: match call.version {
                ..0 => "".into(),
                version => version.to_string().into(),
            },
            id: call.id,
            parameters: json::to_parameters(&call.parameters),
            queue_timeout: (call.timeout_us > 0).then(|| Duration::from_micros(call.timeout_us)),
            sequence: sequence(call.correlation, call.flags),
            ..InferRequest::default()
        };
        for tensor in call.inputs {
            let data = session
                .data(&tensor)
                .map_err(|error| Error::Internal { detail: error.to_string() })?;
            let wire::Tensor { name, datatype, shape, .. } = tensor;
            request.inputs.push(InferInput::new(name, datatype, shape, data));
        }
        for name in call.outputs {
            request.outputs.push(RequestedOutput { name, ..RequestedOutput::default() });
        }
        Ok(request)
    }

    /// Answers a question of the process.
    pub fn answer(&self, session: &Arc<Session>, _: &Arc<Outline>, question: Question) {
        let Question { number, what, numbers, .. } = question;
        let mut writer = Writer::default();
        match what {
            questions::IS_CANCELLED => {
                let request = numbers.first().copied().unwrap_or_default();
                writer.reply(number, session.is_cancelled(request).into());
            }
            _ => writer.refuse(number, "this server does not offer that"),
        }
        session.line.send(writer);
    }

    /// Forgets what the process has let go of.
    pub fn gone(&self, _: Gone, _: &[u64]) {}
}

fn sequence(correlation: Correlation, flags: u32) -> Option<Box<Sequence>> {
    let id = match correlation {
        Correlation::Number(number) => CorrelationId::Number(number),
        Correlation::Text(text) => CorrelationId::Text(text),
    };
    let (start, end) = (flags & 1 != 0, flags & 2 != 0);
    (!id.is_none() || start || end).then(|| Box::new(Sequence { id, start, end }))
}
