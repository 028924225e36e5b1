use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    BenchError,
    args::BenchArgs,
    control::Control,
    cpu,
    load::{Level, RunningLoad, Window},
    progress::Progress,
    recorder::Recording,
    statistics::ServerStatistics,
    window::{Reading, STABLE_WINDOWS, Verdict, judge},
};

/// How often a warm-up by count looks whether it is over.
const WARMUP_POLL: Duration = Duration::from_millis(10);

/// What was measured at one load.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The load.
    pub level: Level,
    /// Whether the windows agreed.
    pub stable: bool,
    /// Windows that were measured.
    pub trials: usize,
    /// What was recorded in the last windows.
    pub recording: Recording,
    /// CPU time of this process in the same time.
    pub client_cpu: Duration,
    /// CPU time of the server in the same time, when its process is known.
    pub server_cpu: Option<Duration>,
    /// What the server counted in the same time, when it tells.
    pub server: Option<ServerStatistics>,
}

/// What is read between windows.
#[derive(Clone, Copy)]
struct Mark {
    client_cpu: Duration,
    server_cpu: Option<Duration>,
    server: Option<ServerStatistics>,
}

impl Mark {
    fn now(args: &BenchArgs, control: &Control) -> Result<Self, BenchError> {
        let client_cpu = cpu::own();
        let server_cpu = args
            .server_pid
            .map(|pid| cpu::of_tree(pid).map_err(|source| BenchError::ServerCpu { pid, source }));
        let server = control.statistics().inspect_err(|error| log::debug!("{error}")).ok();
        Ok(Self { client_cpu, server_cpu: server_cpu.transpose()?, server })
    }
}

/// Measures windows of a load until they agree or were enough.
///
/// # Errors
/// When no request is answered or the server's process is gone.
pub fn measure(
    load: &RunningLoad,
    level: Level,
    args: &BenchArgs,
    control: &Control,
    progress: &Progress,
) -> Result<Measurement, BenchError> {
    warm_up(load, level, args, progress)?;
    load.cut()?;
    let mut marks = vec![Mark::now(args, control)?];
    let (mut windows, mut readings) = (Vec::new(), Vec::new());
    loop {
        progress.rest(args.measurement_interval);
        let window = load.cut()?;
        marks.push(Mark::now(args, control)?);
        check(&window, level, windows.is_empty())?;
        let latency_us = window.recording.latency_us(args.percentile);
        let reading = Reading { rate: window.recording.rate(), latency_us };
        progress.window(reading, args.percentile);
        windows.push(window.recording);
        readings.push(reading);
        match judge(&readings, args.stability_percentage, args.max_trials) {
            Verdict::Continue => {}
            verdict => {
                let stable = verdict == Verdict::Stable;
                return combine(level, stable, &windows, &marks);
            }
        }
    }
}

fn warm_up(
    load: &RunningLoad,
    level: Level,
    args: &BenchArgs,
    progress: &Progress,
) -> Result<(), BenchError> {
    progress.rest(args.warmup_interval);
    let patience = Instant::now() + args.measurement_interval * args.max_trials as u32;
    let mut answered = 0;
    let mut seen = Window { recording: Recording::new(), alive: 1 };
    while answered < args.warmup_request_count && Instant::now() < patience {
        thread::sleep(WARMUP_POLL);
        let window = load.cut()?;
        answered += window.recording.answers();
        seen.recording.add_after(&window.recording);
        seen.alive = window.alive;
        if seen.recording.failures() > 0 {
            check(&seen, level, true)?;
        }
    }
    Ok(())
}

/// Gives up where going on would show nothing.
fn check(window: &Window, level: Level, first: bool) -> Result<(), BenchError> {
    let recording = &window.recording;
    let fruitless = first && recording.answers() == 0 && recording.failures() > 0;
    if window.alive > 0 && !fruitless {
        return Ok(());
    }
    let most = recording.errors().iter().max_by_key(|(_, count)| **count);
    let detail = match most {
        Some((message, count)) => format!("{count} times the answer was '{message}'"),
        None => "all connections are lost".to_owned(),
    };
    Err(BenchError::NoAnswers { load: level.to_string(), detail })
}

fn combine(
    level: Level,
    stable: bool,
    windows: &[Recording],
    marks: &[Mark],
) -> Result<Measurement, BenchError> {
    let first = windows.len().saturating_sub(STABLE_WINDOWS);
    let mut recording = Recording::new();
    for window in windows.iter().skip(first) {
        recording.add_after(window);
    }
    if recording.answers() == 0 {
        let detail = "the last windows saw no answer".to_owned();
        return Err(BenchError::NoAnswers { load: level.to_string(), detail });
    }
    // There is a mark before each window and one after the last.
    let [before, .., after] = marks.get(first..).unwrap_or_default() else {
        return Err(BenchError::NoAnswers {
            load: level.to_string(),
            detail: "nothing was measured".to_owned(),
        });
    };
    Ok(Measurement {
        level,
        stable,
        trials: windows.len(),
        recording,
        client_cpu: after.client_cpu.saturating_sub(before.client_cpu),
        server_cpu: after
            .server_cpu
            .zip(before.server_cpu)
            .map(|(after, before)| after.saturating_sub(before)),
        server: after.server.zip(before.server).map(|(after, before)| after.since(before)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(answers: u64, failures: u64, alive: usize) -> Window {
        let mut recording = Recording::new();
        (0..answers).for_each(|_| recording.answered(Duration::from_micros(100)));
        (0..failures).for_each(|_| recording.failed("UNAVAILABLE: busy"));
        Window { recording, alive }
    }

    #[test]
    fn hopeless_loads_are_given_up() {
        let level = Level::Concurrency(4);
        for (seen, first, go_on) in [
            (window(1, 0, 4), true, true),
            (window(1, 9, 1), true, true),
            (window(0, 9, 4), false, true),
            (window(0, 0, 4), true, true),
            (window(0, 9, 4), true, false),
            (window(9, 9, 0), false, false),
            (window(0, 0, 0), false, false),
        ] {
            assert_eq!(check(&seen, level, first).is_ok(), go_on);
        }
        let error = check(&window(0, 9, 4), level, true).unwrap_err().to_string();
        assert!(error.contains("at concurrency 4: 9 times the answer was 'UNAVAILABLE"), "{error}");
    }

    #[test]
    fn only_the_last_windows_and_the_marks_around_them_count() {
        let windows: Vec<_> = [1, 10, 20, 30].map(|answers| window(answers, 0, 1).recording).into();
        let marks: Vec<_> = [0, 1, 3, 6, 10]
            .map(|seconds| Mark {
                client_cpu: Duration::from_secs(seconds),
                server_cpu: (seconds > 0).then(|| Duration::from_secs(10 * seconds)),
                server: None,
            })
            .into();
        let level = Level::Rate(5.0, crate::cli::bench::load::Distribution::Poisson);
        let measured = combine(level, true, &windows, &marks).unwrap();
        assert_eq!((measured.trials, measured.recording.answers()), (4, 60));
        assert_eq!(measured.client_cpu, Duration::from_secs(9));
        assert_eq!(measured.server_cpu, Some(Duration::from_secs(90)));
        let nothing = [window(0, 0, 1).recording];
        assert!(combine(level, false, &nothing, &marks[..2]).is_err());
    }
}
