//! Torch's switches: those of a thread, and those of the whole process, which runs that want
//! different things of them take in turns.

use std::{
    cell::Cell,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::{
    Failure, libtorch,
    table::{ON, Options, Switch, UNCHANGED},
};

/// The switches of the whole process.
#[derive(Clone, Copy)]
pub struct Switches {
    tensor_fuser: Switch,
    jit_profiling: Switch,
    jit_executor: Switch,
    cudnn: Switch,
}

/// As far as anything has set them. Every run holds it: torch reads some of the switches wherever it
/// runs, without a lock of its own, so that none may change under a run.
static NOW: RwLock<Switches> = RwLock::new(Switches {
    tensor_fuser: UNCHANGED,
    jit_profiling: UNCHANGED,
    jit_executor: UNCHANGED,
    cudnn: UNCHANGED,
});

/// Sets what a run asks for; what is the process's stays so until the result is dropped. Runs that
/// agree, and those that leave the switches as they are, do not wait for each other.
pub fn hold(options: &Options) -> Result<RwLockReadGuard<'static, Switches>, Failure> {
    set_threads(options.intra_op_threads);
    tch::jit::f_set_graph_executor_optimize(options.optimized_execution)?;
    let asked = Switches::of(options);
    let now = NOW.read().unwrap_or_else(PoisonError::into_inner);
    if now.suit(asked) {
        return Ok(now);
    }
    drop(now);
    let mut now = NOW.write().unwrap_or_else(PoisonError::into_inner);
    now.set(asked)?;
    Ok(RwLockWriteGuard::downgrade(now))
}

/// The threads that share an operator's work belong to the thread that calls it.
fn set_threads(threads: i32) {
    thread_local! {
        static INTRA_OP_THREADS: Cell<i32> = const { Cell::new(0) };
    }
    if threads > 0 && INTRA_OP_THREADS.replace(threads) != threads {
        // The first use on a thread takes the number of the process, which another may have set.
        let _ = tch::get_num_threads();
        tch::set_num_threads(threads);
    }
}

impl Switches {
    fn of(options: &Options) -> Self {
        let Options { tensor_fuser, jit_profiling, jit_executor, .. } = *options;
        // Without a GPU nothing reads this one.
        let cudnn = if libtorch::gpu_count() > 0 { options.cudnn } else { UNCHANGED };
        Self { tensor_fuser, jit_profiling, jit_executor, cudnn }
    }

    fn suit(&self, asked: Self) -> bool {
        let suits = |now: Switch, asked: Switch| asked == UNCHANGED || asked == now;
        suits(self.tensor_fuser, asked.tensor_fuser)
            && suits(self.jit_profiling, asked.jit_profiling)
            && suits(self.jit_executor, asked.jit_executor)
            && suits(self.cudnn, asked.cudnn)
    }

    /// Nothing of torch runs meanwhile.
    fn set(&mut self, asked: Self) -> Result<(), Failure> {
        change(&mut self.tensor_fuser, asked.tensor_fuser, |on| {
            Ok(tch::jit::f_set_tensor_expr_fuser_enabled(on)?)
        })?;
        change(&mut self.jit_profiling, asked.jit_profiling, |on| {
            Ok(tch::jit::f_set_profiling_mode(on)?)
        })?;
        change(&mut self.jit_executor, asked.jit_executor, |on| {
            libtorch::set_executor(on);
            Ok(())
        })?;
        change(&mut self.cudnn, asked.cudnn, |on| {
            // SAFETY: every run holds the lock, of which this has the writer's side.
            unsafe { libtorch::set_cudnn(on) };
            Ok(())
        })
    }
}

fn change(
    now: &mut Switch,
    asked: Switch,
    set: impl FnOnce(bool) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if asked != UNCHANGED && asked != *now {
        set(asked == ON)?;
        *now = asked;
    }
    Ok(())
}
