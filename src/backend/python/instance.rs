use std::{sync::Arc, thread};

use super::{Outline, near::Near, session, supervisor::Seat};
use crate::{
    backend::{Host, ModelRequest, NearInstance, RequestInstance},
    runtime::ReactorHandle,
};

/// An instance of a Python model.
pub struct PythonInstance {
    outline: Arc<Outline>,
    seat: Arc<Seat>,
    supervisor: Option<thread::JoinHandle<()>>,
}

impl PythonInstance {
    /// One whose processes are those of `seat`, kept by the thread `supervisor`.
    pub fn new(outline: Arc<Outline>, seat: Arc<Seat>, supervisor: thread::JoinHandle<()>) -> Self {
        Self { outline, seat, supervisor: Some(supervisor) }
    }
}

impl RequestInstance for PythonInstance {
    fn execute(&mut self, requests: Vec<ModelRequest>, host: &Host) {
        self.execute_series(vec![requests], host, &mut || {});
    }

    fn execute_series(
        &mut self,
        series: Vec<Vec<ModelRequest>>,
        _: &Host,
        ended: &mut dyn FnMut(),
    ) {
        let Some(session) = self.seat.session() else {
            return self.outline.refuse(series.into_iter().flatten());
        };
        let mut hear = |said| self.seat.hear(&session, said);
        for round in rounds(series) {
            session.execute(&self.outline, round, &mut hear, ended);
        }
    }

    fn attach(&mut self, home: &ReactorHandle) -> Option<Arc<dyn NearInstance>> {
        let Self { outline, seat, .. } = self;
        seat.attach(home);
        Some(Arc::new(Near::new(outline.clone(), seat.clone(), home.clone())))
    }
}

impl Drop for PythonInstance {
    fn drop(&mut self) {
        self.seat.stop();
        if let Some(supervisor) = self.supervisor.take()
            && supervisor.join().is_err()
        {
            log::error!("the thread of {} panicked", self.outline.process());
        }
    }
}

/// Batches that can be sent together. Large tensors wait for room in the shared memory, which batches
/// that have not been sent yet would never make.
fn rounds(series: Vec<Vec<ModelRequest>>) -> impl Iterator<Item = Vec<Vec<ModelRequest>>> {
    let mut series = series.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut round = vec![series.next()?];
        while round.last().is_some_and(|batch| are_small(batch)) {
            let Some(next) = series.next_if(|batch| are_small(batch)) else { break };
            round.push(next);
        }
        Some(round)
    })
}

/// Whether the tensors of requests travel in the message.
fn are_small(requests: &[ModelRequest]) -> bool {
    let mut inputs = requests.iter().flat_map(|request| request.tensors.inputs.iter().flatten());
    inputs.all(|input| input.data.len() <= session::INLINE_BYTES_MAX)
}
