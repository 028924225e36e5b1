use std::{
    future::Future,
    pin::Pin,
    ptr,
    sync::{
        Weak,
        atomic::{AtomicPtr, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use pin_project_lite::pin_project;

use super::reactor::{ReactorHandle, Shared, with_current};

/// How long a reactor may stay inside one poll before it counts as stalled. A tick of inline
/// models takes 100 µs at most; this is a thousand times that.
const STALL: Duration = Duration::from_millis(100);

/// The name of a piece of work: a reference to a literal, so that it fits one atomic word.
pub type Label = &'static &'static str;

/// What a reactor is doing, written by the reactor alone and read by the watchdog.
#[derive(Default)]
pub(super) struct Activity {
    /// Counts entries and exits of polls: odd while inside one.
    edge: AtomicU64,
    label: AtomicPtr<&'static str>,
    /// The edge at which the watchdog found the reactor stalled.
    stalled_at: AtomicU64,
}

impl Activity {
    fn enter(&self, label: Label) {
        self.label.store(ptr::from_ref(label).cast_mut(), Ordering::Relaxed);
        self.edge.store(self.edge.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn exit(&self) {
        self.edge.store(self.edge.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Whether the watchdog found the reactor inside the poll that it is still in.
    pub(super) fn is_stalled(&self) -> bool {
        let found = self.stalled_at.load(Ordering::Relaxed);
        found % 2 == 1 && found == self.edge.load(Ordering::Relaxed)
    }

    fn current_label(&self) -> &'static str {
        let label = self.label.load(Ordering::Relaxed);
        // SAFETY: `enter` and `label` store only pointers to statics, else the pointer is null.
        unsafe { label.as_ref() }.copied().unwrap_or("nothing")
    }
}

/// How often the current reactor has begun or ended to poll a task, which is the same from the beginning
/// of a poll to its end; 0 elsewhere.
pub(super) fn polls() -> u64 {
    with_current(|reactor| reactor.shared().activity.edge.load(Ordering::Relaxed)).unwrap_or(0)
}

/// Names the work that the current reactor does from here to the end of the poll.
pub fn label(label: Label) {
    with_current(|reactor| {
        let activity = &reactor.shared().activity;
        activity.label.store(ptr::from_ref(label).cast_mut(), Ordering::Relaxed);
    });
}

pin_project! {
    /// A task whose polls the watchdog can see.
    pub(super) struct LabelledTask<F> {
        reactor: ReactorHandle,
        label: Label,
        #[pin]
        task: F,
    }
}

impl<F> LabelledTask<F> {
    pub(super) fn new(reactor: ReactorHandle, label: Label, task: F) -> Self {
        Self { reactor, label, task }
    }
}

impl<F: Future> Future for LabelledTask<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let activity = &this.reactor.shared().activity;
        activity.enter(this.label);
        let poll = this.task.poll(cx);
        activity.exit();
        poll
    }
}

/// Watches the reactors until all of them are gone and logs what keeps one busy for too long.
pub(super) fn watch(reactors: Vec<Weak<Shared>>) {
    let mut seen = vec![0; reactors.len()];
    loop {
        thread::sleep(STALL);
        let mut alive = false;
        for (index, reactor) in reactors.iter().enumerate() {
            let Some(reactor) = reactor.upgrade() else { continue };
            alive = true;
            let activity = &reactor.activity;
            let edge = activity.edge.load(Ordering::Acquire);
            let stuck = edge % 2 == 1 && edge == seen[index];
            if stuck && activity.stalled_at.swap(edge, Ordering::Relaxed) != edge {
                let label = activity.current_label();
                log::warn!("reactor {index} is stalled: busy for over {STALL:?} with {label}");
            }
            seen[index] = edge;
        }
        if !alive {
            return;
        }
    }
}
