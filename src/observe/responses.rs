//! What became of the single responses of models that give several to a request.

use std::{
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::proto;

/// Counters that are made at once, so that a model that gives few responses has few.
const CHUNK: usize = 64;
/// Responses of one request beyond this many chunks of counters are not counted apart.
const CHUNKS: usize = 64;

/// What became of one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// It has outputs.
    Success,
    /// It tells of a failure.
    Failure,
    /// It has no outputs.
    Empty,
    /// Nobody waited for it any more.
    Cancelled,
}

/// Counters by a response's place among those of its request. Responses come from any thread.
#[derive(Default)]
pub(super) struct Responses {
    chunks: OnceLock<Box<[Chunk]>>,
}

type Chunk = OnceLock<Box<[Counters]>>;

/// By [`ResponseKind`], how many there were and their nanoseconds.
#[derive(Default)]
struct Counters([(AtomicU64, AtomicU64); 4]);

impl Responses {
    /// Counts the response `index` of a request, which took `time` from the one before it.
    pub fn note(&self, index: usize, kind: ResponseKind, time: Duration) {
        let chunks = self.chunks.get_or_init(|| (0..CHUNKS).map(|_| OnceLock::new()).collect());
        let Some(chunk) = chunks.get(index / CHUNK) else { return };
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| Counters::default()).collect());
        if let Some(Counters(counters)) = chunk.get(index % CHUNK) {
            let (count, nanos) = &counters[kind as usize];
            count.fetch_add(1, Ordering::Relaxed);
            let took = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            nanos.fetch_add(took, Ordering::Relaxed);
        }
    }

    /// The counters as the protocol reports them, by the place of the response.
    pub fn to_proto(&self) -> BTreeMap<String, proto::InferResponseStatistics> {
        let chunks = self.chunks.get().into_iter().flat_map(|chunks| chunks.iter()).enumerate();
        let counters = chunks.flat_map(|(chunk, counters)| {
            let counters = counters.get().into_iter().flat_map(|counters| counters.iter());
            counters.enumerate().map(move |(index, counters)| (chunk * CHUNK + index, counters))
        });
        let reported = counters.filter_map(|(index, counters)| {
            let statistics = counters.to_proto()?;
            Some((index.to_string(), statistics))
        });
        reported.collect()
    }
}

impl Counters {
    fn read(&self, kind: ResponseKind) -> proto::StatisticDuration {
        let (count, nanos) = &self.0[kind as usize];
        proto::StatisticDuration {
            count: count.load(Ordering::Relaxed),
            ns: nanos.load(Ordering::Relaxed),
        }
    }

    /// `None` when there was no such response.
    fn to_proto(&self) -> Option<proto::InferResponseStatistics> {
        let success = self.read(ResponseKind::Success);
        let (fail, empty) = (self.read(ResponseKind::Failure), self.read(ResponseKind::Empty));
        let cancel = self.read(ResponseKind::Cancelled);
        let computed = proto::StatisticDuration {
            count: success.count + fail.count,
            ns: success.ns.wrapping_add(fail.ns),
        };
        let any = computed.count + empty.count + cancel.count > 0;
        any.then_some(proto::InferResponseStatistics {
            compute_infer: Some(computed),
            compute_output: Some(proto::StatisticDuration { count: success.count, ns: 0 }),
            success: Some(success),
            fail: Some(fail),
            empty_response: Some(empty),
            cancel: Some(cancel),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_counted_by_their_place_and_kind() {
        let responses = Responses::default();
        assert!(responses.to_proto().is_empty());
        let micro = Duration::from_micros(1);
        responses.note(0, ResponseKind::Success, micro);
        responses.note(0, ResponseKind::Success, micro);
        responses.note(CHUNK, ResponseKind::Failure, micro);
        responses.note(CHUNK + 1, ResponseKind::Empty, micro);
        responses.note(CHUNK * CHUNKS, ResponseKind::Success, micro);
        let reported = responses.to_proto();
        assert_eq!(reported.keys().collect::<Vec<_>>(), ["0", "64", "65"]);
        let first = &reported["0"];
        assert_eq!(first.success.map(|it| (it.count, it.ns)), Some((2, 2000)));
        assert_eq!(first.compute_infer, first.success);
        assert_eq!(reported["64"].fail.map(|it| it.count), Some(1));
        assert_eq!(reported["65"].empty_response.map(|it| it.count), Some(1));
    }
}
