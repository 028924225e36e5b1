use std::{rc::Rc, time::Instant};

use super::Shard;
use crate::{cli::bench::client::Slot, runtime};

/// Keeps every slot busy: its next request is sent as soon as the last one is answered.
pub(super) fn start(slots: Vec<Slot>, shard: &Rc<Shard>) {
    for slot in slots {
        runtime::spawn(&"a closed loop of requests", repeat(slot, shard.clone()));
    }
}

async fn repeat(mut slot: Slot, shard: Rc<Shard>) {
    while !shard.stopping.get() {
        shard.begin();
        let sent = Instant::now();
        let outcome = slot.infer().await;
        if !shard.end(sent, outcome) {
            return;
        }
    }
}
