use bytes::Bytes;
use smallvec::SmallVec;

use super::batch::{in_place, pieces};
use crate::{
    inference::{Admitted, Signature},
    memory::{Buffer, BufferPool, Filler, Gather},
    runtime::{ReactorHandle, spawn, yield_now},
};

/// What a thread copies before it looks up again: 5 to 25 µs of a reactor's time, at the 50 GB/s of
/// bytes in a cache or the 10 GB/s of others, and long enough that claiming it costs nothing beside.
const CHUNK_BYTES: usize = 256 << 10;
/// Batches of fewer bytes that can begin at once are put together by the thread that runs them. A
/// message takes 35 µs to wake another core and costs its sender 8; by then one thread has copied most
/// of this much, and who is called for less comes when all is done.
pub const SHARED_BYTES_MIN: usize = 8 * CHUNK_BYTES;
/// The same for batches that wait for an instance. There is time for the call, and what others copy
/// meanwhile the instance's thread, the one that all wait for, need not; it must only be worth 8 µs.
pub const SHARED_AHEAD_BYTES_MIN: usize = 2 * CHUNK_BYTES;

/// The inputs of a sealed batch that several threads put together: by input of the signature, `None`
/// for one that is left out or need not be copied. Empty for a batch too small to share.
#[derive(Default)]
pub struct SharedRows(SmallVec<[Option<Gather<Buffer, Bytes>>; 2]>);

fn gather<'a>(
    pieces: impl Iterator<Item = &'a Bytes> + Clone,
    pool: &BufferPool,
) -> Option<Gather<Buffer, Bytes>> {
    let buffer = pool.allocate(pieces.clone().map(Bytes::len).sum()).ok()?;
    Gather::new(buffer, pieces.cloned(), CHUNK_BYTES).ok()
}

/// Who could help to put a batch together.
pub struct Help {
    fillers: SmallVec<[Filler<Buffer, Bytes>; 2]>,
    reactors: SmallVec<[ReactorHandle; 4]>,
}

impl SharedRows {
    /// Gives the batch's inputs their places, if they have at least `bytes_min` in all. Where the
    /// memory budget is used up they get none here; it may not be by the time the batch runs.
    pub fn seal(
        signature: &Signature,
        requests: &[&Admitted],
        bytes_min: usize,
        pool: &BufferPool,
    ) -> Self {
        let bytes: usize = requests.iter().map(|request| request.byte_size()).sum();
        if bytes < bytes_min {
            return Self::default();
        }
        let gathers = (0..signature.inputs.len()).map(|index| {
            let is_to_copy = in_place(signature, requests, index, pool).is_none();
            is_to_copy.then(|| gather(pieces(requests, index), pool))?
        });
        Self(gathers.collect())
    }

    /// Gives all inputs places in the pool, also those that could stay where they lie.
    pub fn seal_all(signature: &Signature, requests: &[&Admitted], pool: &BufferPool) -> Self {
        let given = |index: usize| requests.iter().any(|request| request.inputs[index].is_some());
        let gathers = (0..signature.inputs.len())
            .map(|index| given(index).then(|| gather(pieces(requests, index), pool))?);
        Self(gathers.collect())
    }

    /// Whether so little is left to copy that nobody need be asked to help.
    pub fn is_soon_filled(&self) -> bool {
        let chunks: usize = self.0.iter().flatten().map(Gather::chunks).sum();
        chunks * CHUNK_BYTES < SHARED_AHEAD_BYTES_MIN
    }

    /// Copies what others leave, with a turn for everything else on the reactor between chunks.
    pub async fn fill(&self) {
        fill(self.0.iter().flatten().map(Gather::filler).collect()).await;
    }

    /// The reactors of `holders`, which hold the requests' bytes, at most as many as there are chunks
    /// for them; `None` when there is nothing for any.
    pub fn help<'a>(&self, holders: impl Iterator<Item = &'a ReactorHandle>) -> Option<Help> {
        let chunks: usize = self.0.iter().flatten().map(Gather::chunks).sum();
        // One chunk is for the thread that runs the batch.
        let helpers_max = chunks.saturating_sub(1);
        let mut reactors: SmallVec<[ReactorHandle; 4]> = SmallVec::new();
        for reactor in holders {
            let asked = reactors.iter().any(|asked| asked.index() == reactor.index());
            if !asked && reactors.len() < helpers_max {
                reactors.push(reactor.clone());
            }
        }
        let fillers = self.0.iter().flatten().map(Gather::filler).collect();
        (!reactors.is_empty()).then_some(Help { fillers, reactors })
    }

    /// The input `index`, complete, if it was shared.
    pub fn complete(&mut self, index: usize) -> Option<Bytes> {
        Some(self.0.get_mut(index)?.take()?.complete().freeze())
    }
}

impl Help {
    /// Asks all of them. Runs on a reactor.
    pub fn call(self) {
        for reactor in self.reactors {
            let fillers = self.fillers.clone();
            if reactor.is_current() {
                spawn(&"filling a batch", fill(fillers));
                continue;
            }
            let asked =
                reactor.try_send(Box::new(move || spawn(&"filling a batch", fill(fillers))));
            if asked.is_err() {
                log::debug!("reactor {} has no time to fill a batch", reactor.index());
            }
        }
    }
}

/// Copies chunk by chunk, with a turn for everything else on the reactor between them.
async fn fill(fillers: SmallVec<[Filler<Buffer, Bytes>; 2]>) {
    for filler in fillers {
        while filler.fill_chunk() {
            yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;
    use crate::{
        inference::{AdmittedInput, DataType, Rope, Shape, TensorSpec},
        runtime::Reactors,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    fn signature() -> Signature {
        Signature {
            model: "m".into(),
            max_batch_size: 8,
            inputs: ["A", "B"]
                .map(|name| TensorSpec::new(name, DataType::Uint8, Shape::from([-1])))
                .into(),
            outputs: Vec::new(),
        }
    }

    /// A request of one row whose input `A` has `bytes` bytes, which came in frames; `B` is left out.
    fn admitted(value: u8, bytes: usize) -> Admitted {
        let mut data = Rope::default();
        for frame in vec![value; bytes].chunks(16 << 10) {
            data.push(Bytes::copy_from_slice(frame));
        }
        let input = AdmittedInput { shape: Shape::from([1, bytes as i64]), data };
        Admitted {
            batch_size: 1,
            inputs: [Some(input), None].into_iter().collect(),
            outputs: SmallVec::new(),
            classes: SmallVec::new(),
        }
    }

    fn pool(budget: usize) -> BufferPool {
        BufferPool::new(1 << 20, budget).unwrap()
    }

    #[test]
    fn small_batches_and_those_past_the_budget_are_left_to_the_instance() {
        const MIN: usize = SHARED_BYTES_MIN;
        for (bytes, budget) in [(MIN - 1, MIN), (MIN, MIN - 1)] {
            let request = admitted(1, bytes);
            let mut rows = SharedRows::seal(&signature(), &[&request], MIN, &pool(budget));
            assert!(rows.help([].into_iter()).is_none());
            assert_eq!(rows.complete(0), None);
        }
    }

    #[test]
    fn a_large_request_that_can_stay_where_it_lies_is_not_shared() {
        let mut request = admitted(1, 1 << 20);
        let input = request.inputs[0].as_mut().unwrap();
        input.data = std::mem::take(&mut input.data).into_bytes().into();
        let pool = pool(1 << 20);
        assert_eq!(SharedRows::seal(&signature(), &[&request], 1, &pool).complete(0), None);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn reactors_fill_a_batch_that_nobody_has_begun_to_run() {
        let reactors = Reactors::of_test(2);
        let requests = [1, 2, 3].map(|value| admitted(value, 300 << 10));
        let requests = requests.each_ref();
        let mut rows = SharedRows::seal(&signature(), &requests, 1, &pool(1 << 20));
        let help = rows.help([0, 1, 0].map(|holder| &reactors.handles()[holder]).into_iter());
        let help = help.unwrap();
        assert_eq!(help.reactors.len(), 2);
        let (report, called) = mpsc::channel();
        let call = move || {
            help.call();
            report.send(()).unwrap();
        };
        reactors.handles()[0].send(Box::new(call)).unwrap();
        called.recv_timeout(PATIENCE).unwrap();
        let patience = std::time::Instant::now() + PATIENCE;
        while !rows.0[0].as_ref().unwrap().is_filled() {
            assert!(std::time::Instant::now() < patience, "the reactors did not fill the batch");
            thread::sleep(Duration::from_millis(1));
        }
        let expected = [1, 2, 3].map(|value| vec![value; 300 << 10]).concat();
        assert!(rows.complete(0).unwrap() == expected);
        assert_eq!(rows.complete(1), None);
        reactors.stop();
    }
}
