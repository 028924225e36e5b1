//! Sequences through a whole server without its wires.

use super::*;
use crate::{
    backend::BatchTensor,
    inference::{CorrelationId, Sequence},
    repository::{SequenceControl, SequenceControlKind, SequenceState, SequenceStrategy},
};

/// Gives back its input, counts in its state how often its sequence has run, and tells of each row
/// whether it is ready and what its state was.
struct Counting(mpsc::Sender<Vec<(u8, u8)>>);

impl Model for Counting {
    fn instance(&self, _: &Placement, _: &Arc<Host>) -> Result<ModelInstance, BackendError> {
        Ok(ModelInstance::Batches(Box::new(Self(self.0.clone()))))
    }
}

impl Instance for Counting {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        let [Some(rows), Some(ready), Some(counts)] = batch.inputs else {
            return Err(BackendError("expected the input, READY and the state".into()));
        };
        if rows.data.first() == Some(&FAILING) {
            return Err(BackendError("it was asked to fail".into()));
        }
        assert_eq!(
            (&ready.shape, &counts.shape),
            (&[i64::from(batch.rows), 1].into(), &ready.shape)
        );
        self.0.send(ready.data.iter().copied().zip(counts.data.iter().copied()).collect()).unwrap();
        let more: Vec<u8> = counts.data.iter().map(|count| count + 1).collect();
        let counts = BatchTensor { shape: counts.shape.clone(), data: more.into() };
        Ok([Some(rows.clone()), Some(counts)].into_iter().collect())
    }
}

/// A row that begins with this makes the model fail.
const FAILING: u8 = 99;

fn batching() -> SequenceBatching {
    SequenceBatching {
        strategy: SequenceStrategy::Direct {
            max_queue_delay: Duration::ZERO,
            minimum_slot_utilization: 0.0,
        },
        max_idle: Duration::from_secs(60),
        controls: vec![SequenceControl {
            input: "READY".into(),
            kind: SequenceControlKind::Ready,
            datatype: DataType::Bool,
            false_true: [vec![0], vec![1]],
        }],
        states: vec![SequenceState {
            input: "COUNT".into(),
            output: "COUNTED".into(),
            datatype: DataType::Uint8,
            dims: Shape::from([1]),
            initial: None,
        }],
        iterative: false,
    }
}

impl Stage {
    fn ask_in(&self, id: u64, flags: &str, value: u8) -> Reply {
        let (report, answer) = mpsc::channel();
        let server = self.server.clone();
        let sequence = Sequence {
            id: CorrelationId::Number(id),
            start: flags.contains('s'),
            end: flags.contains('e'),
        };
        let asking = move || {
            let shape = Shape::from([1, ROW as i64]);
            let input = InferInput::new("IN", DataType::Uint8, shape, vec![value; ROW]);
            let request = InferRequest {
                model_name: "m".into(),
                inputs: [input].into_iter().collect(),
                sequence: Some(Box::new(sequence)),
                ..InferRequest::default()
            };
            let mut replies = server.infer(request, None).unwrap();
            spawn(&"a client", async move {
                report.send(replies.receive().await.unwrap()).unwrap();
            });
        };
        self.reactors.handles()[0].send(Box::new(asking)).unwrap();
        answer.recv_timeout(PATIENCE).unwrap()
    }
}

#[test]
fn a_sequence_carries_its_state_and_no_other_sees_it() {
    let (tell, told) = mpsc::channel();
    let stage = Stage::of_sequences(Counting(tell), &batching());
    let ask = |id, flags, value| {
        let reply = stage.ask_in(id, flags, value)?;
        assert_eq!(reply.outputs.len(), 1);
        assert_eq!((&*reply.outputs[0].name, reply.outputs[0].data[0]), ("OUT", value));
        Ok::<_, crate::inference::Error>(told.recv_timeout(PATIENCE).unwrap())
    };
    assert_eq!(ask(1, "s", 10), Ok(vec![(1, 0)]));
    // The second sequence has the second row; the first has nothing to run.
    assert_eq!(ask(2, "s", 20), Ok(vec![(0, 0), (1, 0)]));
    assert_eq!(ask(2, "", 21), Ok(vec![(0, 0), (1, 1)]));
    assert_eq!(ask(1, "", 11), Ok(vec![(1, 1)]));
    assert!(ask(1, "", FAILING).is_err());
    assert_eq!(ask(1, "", 12), Ok(vec![(1, 2)]));
    assert_eq!(ask(1, "s", 13), Ok(vec![(1, 0)]));
    assert_eq!(ask(1, "e", 14), Ok(vec![(1, 1)]));
    let refusal = ask(1, "", 15).unwrap_err().to_string();
    assert!(refusal.contains("must specify the START flag"), "{refusal}");
    // Its row is the next one's.
    assert_eq!(ask(3, "se", 30), Ok(vec![(1, 0)]));
    let totals = stage.totals();
    assert_eq!((totals.success.count, totals.fail.count, totals.inferences), (8, 1, 8));
    assert_eq!(totals.pending, 0);
    stage.end();
}
