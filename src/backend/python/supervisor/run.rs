//! One process of an instance, as long as it runs.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, OnceLock, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smallvec::SmallVec;

use super::Seat;
use crate::backend::python::{
    Outline,
    inbox::{Broken, Inbox},
    line::Line,
    output::Output,
    process::Process,
    session::{Session, arena_and_line},
    wire::{Said, Writer},
};

/// How often a process is looked at though it says nothing.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the hook `is_ready` of a model that has it is asked.
const ASK_READY_EVERY: Duration = Duration::from_secs(1);
/// How long the model's `finalize` may take.
const FINALIZE_MAX: Duration = Duration::from_secs(20);

/// Why a process did not get as far as to serve.
pub(super) enum Failed {
    /// The model raised this.
    Model(String),
    /// The process.
    Process(String),
}

/// A process that runs.
pub(super) struct Run {
    output: Output,
    pub(super) process: Process,
    pub(super) session: Arc<Session>,
    pub(super) answer: String,
    has_is_ready: bool,
}

impl Run {
    /// Starts a process, which has nothing to do yet.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn start(outline: &Outline) -> io::Result<Self> {
        let Outline { interpreter, instance, files, .. } = outline;
        let slot = Arc::new(OnceLock::new());
        let arena = arena_and_line(outline.memory_bytes, &slot)?;
        let (process, sockets) = Process::start(interpreter, instance, files, &arena)?;
        let line = Arc::new(Line::new(sockets)?);
        let line = slot.get_or_init(|| line).clone();
        Ok(Self {
            output: Output::new(&outline.model, instance),
            session: Arc::new(Session::new(line, arena, process.id())),
            process,
            answer: String::new(),
            has_is_ready: false,
        })
    }

    /// Waits until the process has begun with what it is for. Gives its answer.
    ///
    /// # Errors
    /// When the model fails, or the process ends or takes too long.
    pub(super) fn wait_until_started(&mut self, seat: &Seat) -> Result<String, Failed> {
        let deadline = Instant::now() + seat.outline.start_limit;
        let session = self.session.clone();
        let mut inbox = session.inbox();
        loop {
            self.has_ended();
            let is_late = Instant::now() >= deadline;
            match self.next_said(&mut inbox) {
                Ok(Some(Said::Started { has_is_ready, outcome })) => {
                    self.has_is_ready = has_is_ready;
                    return outcome.map_err(Failed::Model);
                }
                Ok(_) if seat.is_stopping() => {
                    return Err(Failed::Process("is not wanted any more".to_owned()));
                }
                Ok(_) if is_late => {
                    return Err(Failed::Process(format!(
                        "was not ready within {} s (backend-config stub-timeout-seconds)",
                        seat.outline.start_limit.as_secs()
                    )));
                }
                Ok(Some(said)) => seat.hear(&session, said).map_err(Failed::Process)?,
                Ok(None) => self.wait(LOOK_EVERY),
                Err(reason) => {
                    self.output.drain(&mut self.process);
                    return Err(Failed::Process(match self.output.last_error() {
                        Some(line) => format!("{reason}: {line}"),
                        None => reason,
                    }));
                }
            }
        }
    }

    /// Serves until it is to stop.
    ///
    /// # Errors
    /// When the process has ended, or has to be.
    pub(super) fn serve(&mut self, seat: &Seat) -> Result<(), String> {
        let mut looked = Instant::now();
        let mut asked = Instant::now();
        let mut stopped: Option<Instant> = None;
        loop {
            self.hear_all(seat)?;
            self.session.send_answers(usize::MAX);
            if seat.is_stopping() {
                self.finalize(seat);
                return Ok(());
            }
            self.wait(LOOK_EVERY);
            let now = Instant::now();
            if now - looked >= LOOK_EVERY {
                looked = now;
                self.trim();
                self.session.look_after();
                let is_stopped = self.process.is_stopped();
                self.session.is_stopped.store(is_stopped, Ordering::Relaxed);
                let since = is_stopped.then(|| *stopped.get_or_insert(now));
                stopped = since;
                if since.is_some_and(|since| now - since > seat.outline.start_limit) {
                    return Err("was stopped by a signal and not continued".to_owned());
                }
            }
            if self.has_is_ready && now - asked >= ASK_READY_EVERY {
                asked = now;
                let mut writer = Writer::default();
                writer.ask_ready(0);
                self.session.line.send(writer);
            }
        }
    }

    /// Gives memory back that has not been used lately.
    fn trim(&self) {
        if let Some(kept) = self.session.arena.trim() {
            let mut writer = Writer::default();
            writer.trim(kept);
            self.session.line.send(writer);
        }
    }

    fn finalize(&mut self, seat: &Seat) {
        let deadline = Instant::now() + FINALIZE_MAX;
        let mut writer = Writer::default();
        writer.finalize();
        self.session.line.send(writer);
        while Instant::now() < deadline
            && self.hear_all(seat).is_ok()
            && !self.session.has_finalized.load(Ordering::Acquire)
        {
            self.wait(LOOK_EVERY);
        }
        self.output.drain(&mut self.process);
    }

    /// Waits until there is something to do, or for `limit`.
    fn wait(&mut self, limit: Duration) {
        let line = self.session.line.clone();
        let is_written = line.flush();
        let heard = PollFd::new(line.ear(), PollFlags::POLLIN);
        let written = PollFd::new(line.socket(), PollFlags::POLLOUT);
        let others = [
            Some(line.bell()),
            self.process.handle(),
            self.process.stdout.as_ref().map(AsFd::as_fd),
            self.process.stderr.as_ref().map(AsFd::as_fd),
        ];
        let others = others.into_iter().flatten().map(|file| PollFd::new(file, PollFlags::POLLIN));
        let mut files: SmallVec<[PollFd<'_>; 6]> = others.chain([heard]).collect();
        files.extend((!is_written).then_some(written));
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        // Interrupted or not, what there is is looked at next.
        let _ = poll(&mut files, limit);
        drop(files);
        line.hush();
        self.output.read(&mut self.process);
    }

    /// Hears what the process has said, unless a reactor or the instance's thread does.
    ///
    /// # Errors
    /// When the process has ended, or has to be.
    fn hear_all(&mut self, seat: &Seat) -> Result<(), String> {
        let session = self.session.clone();
        session.misdeed().map_or(Ok(()), Err)?;
        let has_ended = self.has_ended();
        if session.is_attached() {
            // It hears the end too, and then leaves the rest to this thread.
            return Ok(());
        }
        let inbox = if has_ended { Some(session.inbox()) } else { session.inbox_if_free() };
        if let Some(mut inbox) = inbox {
            while let Some(said) = self.next_said(&mut inbox)? {
                seat.hear(&session, said)?;
            }
        }
        session.misdeed().map_or(Ok(()), Err)
    }

    /// Whether the process has ended. If so, nothing more can come than what it has said: a process that
    /// it forked may still have its end of the socket.
    fn has_ended(&mut self) -> bool {
        let has_ended = self.process.ended().is_some();
        if has_ended {
            self.session.line.hang_up();
        }
        has_ended
    }

    /// The next thing that the process said, if it is there.
    ///
    /// # Errors
    /// When the process has ended, or says what cannot be understood.
    fn next_said(&mut self, inbox: &mut Inbox) -> Result<Option<Said>, String> {
        inbox.next(&self.session.line, false).map_err(|broken| match broken {
            Broken::Closed => self.how_it_ended(),
            Broken::Malformed(error) => error.to_string(),
        })
    }

    fn how_it_ended(&mut self) -> String {
        // The socket closes a moment before the process can be waited for.
        for _ in 0..100 {
            if let Some(status) = self.process.ended() {
                return format!("ended with {status}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Broken::Closed.to_string()
    }
}
