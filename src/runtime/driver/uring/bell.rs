#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, Ordering};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const RUNG: u8 = 2;

/// Whether a reactor sleeps, and whether another thread has something for it. One word holds both, so
/// that a reactor cannot fall asleep over what it was rung for.
pub struct Bell(AtomicU8);

impl Bell {
    /// One that was rung, so that the reactor looks once.
    pub fn new() -> Self {
        Self(AtomicU8::new(RUNG))
    }

    /// Notes that there is something. Tells whether the reactor sleeps: then the caller is to wake it.
    pub fn ring(&self) -> bool {
        self.0.swap(RUNG, Ordering::AcqRel) == ASLEEP
    }

    /// Tells whether the reactor may sleep: it may not when the bell was rung.
    pub fn lie_down(&self) -> bool {
        self.0.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The reactor is awake. Tells whether the bell was rung since this was last asked.
    pub fn get_up(&self) -> bool {
        self.0.load(Ordering::Relaxed) != AWAKE && self.0.swap(AWAKE, Ordering::AcqRel) == RUNG
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{
        sync::{Arc, Condvar, Mutex, atomic::AtomicUsize},
        thread,
    };

    use super::*;

    /// A reactor that sleeps until it is woken sees everything that others had for it.
    #[test]
    fn nobody_sleeps_over_a_bell() {
        loom::model(|| {
            let bell = Arc::new(Bell::new());
            let things = Arc::new(AtomicUsize::new(0));
            let wakes = Arc::new((Mutex::new(0), Condvar::new()));
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let (bell, things, wakes) = (bell.clone(), things.clone(), wakes.clone());
                    thread::spawn(move || {
                        things.fetch_add(1, Ordering::Relaxed);
                        if bell.ring() {
                            *wakes.0.lock().unwrap() += 1;
                            wakes.1.notify_one();
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            while seen < 2 {
                if bell.get_up() {
                    seen = things.load(Ordering::Relaxed);
                } else if bell.lie_down() {
                    let mut woken = wakes.0.lock().unwrap();
                    while *woken == 0 {
                        woken = wakes.1.wait(woken).unwrap();
                    }
                    *woken = 0;
                }
            }
            others.into_iter().for_each(|other| other.join().unwrap());
        });
    }
}
