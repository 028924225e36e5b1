use std::{
    io::{Read as _, Write as _},
    net,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{self, channel},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{reactor::current_index, *};

fn start(driver: Driver, count: usize) -> Reactors {
    start_spinning(driver, count, Duration::ZERO)
}

fn start_spinning(driver: Driver, count: usize, idle_spin: Duration) -> Reactors {
    let driver = DriverChoice::Only(driver);
    let settings = ReactorSettings { count, driver, idle_spin, mailbox_capacity: 64 };
    Reactors::start(&settings, &Topology::read().unwrap()).unwrap()
}

fn on_both_drivers(test: impl Fn(&Reactors)) {
    for driver in [Driver::Epoll, Driver::IoUring] {
        let reactors = start(driver, 2);
        test(&reactors);
        reactors.stop();
    }
}

#[test]
fn a_message_runs_on_its_reactor() {
    on_both_drivers(|reactors| {
        for handle in reactors.handles() {
            let (report, reported) = channel();
            let there = handle.clone();
            handle.send(Box::new(move || report.send(there.is_current()).unwrap())).unwrap();
            assert!(reported.recv().unwrap());
            assert!(!handle.is_current());
        }
    });
}

#[test]
fn one_aside_goes_on_while_the_others_stall() {
    let settings = ReactorSettings {
        count: 2,
        driver: DriverChoice::Auto,
        idle_spin: Duration::ZERO,
        mailbox_capacity: 64,
    };
    let topology = Topology::read().unwrap();
    let mut reactors = Reactors::start(&settings, &topology).unwrap();
    let shared = Arc::new(PerReactor::new(reactors.handles()));
    let aside = reactors.start_aside(&settings, &topology.reactor_cores(2)).unwrap();
    let (go_on, stalled) = channel::<()>();
    let stalled = Arc::new(std::sync::Mutex::new(stalled));
    for handle in reactors.handles() {
        let (stalled, shared) = (stalled.clone(), shared.clone());
        let stall = move || {
            shared.set(handle_number());
            let _ = stalled.lock().unwrap().recv();
        };
        handle.send(Box::new(stall)).unwrap();
    }
    let (report, reported) = channel();
    let ask = move || {
        spawn(&"aside", async move {
            sleep(Duration::from_millis(1)).await;
            report.send((handle_number(), shared.get().copied())).unwrap();
        });
    };
    aside.send(Box::new(ask)).unwrap();
    let heard = reported.recv_timeout(Duration::from_secs(10));
    drop(go_on);
    assert_eq!(heard, Ok((Some(2), None)));
    reactors.stop();
}

fn handle_number() -> Option<usize> {
    try_current().map(|reactor| reactor.index())
}

#[test]
fn a_spawned_task_starts_after_the_one_that_spawned_it_pauses() {
    on_both_drivers(|reactors| {
        let (report, reported) = channel();
        let spawning = move || {
            spawn(&"outer", async move {
                let inner = report.clone();
                spawn(&"inner", async move { inner.send("inner").unwrap() });
                report.send("outer").unwrap();
                yield_now().await;
            });
        };
        reactors.handles()[0].send(Box::new(spawning)).unwrap();
        assert_eq!(reported.recv().unwrap(), "outer");
        assert_eq!(reported.recv().unwrap(), "inner");
    });
}

#[test]
fn a_busy_reactor_still_hears_other_threads_and_its_timers() {
    on_both_drivers(|reactors| {
        let (report, reported) = channel();
        let busy = move || {
            let done = Rc::new(std::cell::Cell::new(false));
            let spinning = done.clone();
            spawn(&"never idle", async move {
                while !spinning.get() {
                    yield_now().await;
                }
            });
            spawn(&"timer", async move {
                sleep(Duration::from_millis(20)).await;
                done.set(true);
                report.send(()).unwrap();
            });
        };
        reactors.handles()[0].send(Box::new(busy)).unwrap();
        let (heard, hearing) = channel();
        reactors.handles()[0].send(Box::new(move || heard.send(()).unwrap())).unwrap();
        let patience = Duration::from_secs(10);
        hearing.recv_timeout(patience).unwrap();
        reported.recv_timeout(patience).unwrap();
    });
}

#[test]
fn a_loop_that_spins_hears_of_work_before_during_and_after_its_spin_and_then_sleeps() {
    fn processor_time() -> Duration {
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD);
        let usage = usage.unwrap();
        let micros = |time: nix::sys::time::TimeVal| {
            Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64)
        };
        micros(usage.user_time()) + micros(usage.system_time())
    }
    let spin = Duration::from_millis(2);
    for driver in [Driver::Epoll, Driver::IoUring] {
        let reactors = start_spinning(driver, 1, spin);
        let mut used = Vec::new();
        for pause in [Duration::ZERO, spin / 2, spin * 5, Duration::from_millis(500)] {
            thread::sleep(pause);
            let (report, reported) = channel();
            let asking = move || {
                spawn(&"asking", async move {
                    sleep(Duration::from_micros(100)).await;
                    report.send(processor_time()).unwrap();
                });
            };
            reactors.handles()[0].send(Box::new(asking)).unwrap();
            used.push(reported.recv_timeout(Duration::from_secs(10)).unwrap());
        }
        // Had it never slept, the last pause alone would have taken all of its 500 ms.
        assert!(used[3] - used[2] < Duration::from_millis(250), "{driver}: {used:?}");
        reactors.stop();
    }
}

#[test]
fn replies_come_home_from_any_thread_and_their_end_is_seen() {
    on_both_drivers(|reactors| {
        let (report, reported) = channel();
        let other = reactors.handles()[1].clone();
        let asking = move || {
            let (sender, mut receiver) = reply_channel();
            other
                .send(Box::new(move || {
                    sender.send(1).unwrap();
                    thread::spawn(move || sender.finish(2)).join().unwrap();
                }))
                .unwrap();
            spawn(&"asking", async move {
                let mut got = Vec::new();
                while let Some(reply) = receiver.receive().await {
                    got.push(reply);
                }
                report.send(got).unwrap();
            });
        };
        reactors.handles()[0].send(Box::new(asking)).unwrap();
        assert_eq!(reported.recv_timeout(Duration::from_secs(10)).unwrap(), [1, 2]);
    });
}

#[test]
fn a_reply_that_is_there_is_received_once_and_is_the_last() {
    let mut answered = ReplyReceiver::answered(7);
    assert_eq!(answered.end(), None);
    assert_eq!(answered.receive().now_or_never(), Some(Some(7)));
    assert_eq!(answered.end(), Some(End::Last));
    assert_eq!(answered.receive().now_or_never(), Some(None));
}

#[test]
fn a_sender_learns_that_its_request_was_abandoned() {
    on_both_drivers(|reactors| {
        let (report, reported) = channel();
        let abandoning = move || {
            let (sender, receiver) = reply_channel::<()>();
            drop(receiver);
            thread::spawn(move || report.send(sender.is_abandoned()).unwrap());
        };
        reactors.handles()[0].send(Box::new(abandoning)).unwrap();
        assert!(reported.recv().unwrap());
    });
}

#[test]
fn values_of_reactors_are_dropped_where_they_lived() {
    struct Tattle(mpsc::Sender<Option<usize>>);
    impl Drop for Tattle {
        fn drop(&mut self) {
            self.0.send(current_index()).unwrap();
        }
    }
    on_both_drivers(|reactors| {
        let values = Arc::new(PerReactor::new(reactors.handles()));
        let (report, reported) = channel();
        for handle in reactors.handles() {
            let (values, report, (set, is_set)) = (values.clone(), report.clone(), channel());
            handle
                .send(Box::new(move || {
                    values.set(Tattle(report));
                    assert!(values.get().is_some());
                    drop(values);
                    set.send(()).unwrap();
                }))
                .unwrap();
            is_set.recv().unwrap();
        }
        assert!(values.get().is_none());
        drop(values);
        let mut dropped_on = [reported.recv().unwrap(), reported.recv().unwrap()];
        dropped_on.sort_unstable();
        assert_eq!(dropped_on, [Some(0), Some(1)]);
    });
}

/// glommio's own loop falls asleep over runnable tasks about once in 100,000 messages on a busy machine.
#[test]
fn no_wake_from_another_thread_is_lost() {
    const MESSAGES: usize = 20_000;
    on_both_drivers(|reactors| {
        let handle = reactors.handles()[0].clone();
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let handle = handle.clone();
                thread::spawn(move || {
                    let (answer, answers) = channel();
                    for message in 0..MESSAGES {
                        let answer = answer.clone();
                        handle.send(Box::new(move || answer.send(message).unwrap())).unwrap();
                        let patience = Duration::from_secs(20);
                        assert_eq!(answers.recv_timeout(patience), Ok(message));
                    }
                })
            })
            .collect();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn a_stalled_reactor_is_found_and_recovers() {
    on_both_drivers(|reactors| {
        let handle = reactors.handles()[0].clone();
        let (go, release) = channel::<()>();
        handle.send(Box::new(move || release.recv().unwrap_or_default())).unwrap();
        let patience = Instant::now() + Duration::from_secs(10);
        while !handle.is_stalled() {
            assert!(Instant::now() < patience, "the stall was not found");
            thread::sleep(Duration::from_millis(10));
        }
        drop(go);
        while handle.is_stalled() {
            assert!(Instant::now() < patience, "the end of the stall was not seen");
            thread::sleep(Duration::from_millis(10));
        }
    });
}

fn connected() -> (net::TcpStream, net::TcpStream) {
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn a_connection_echoes_what_its_peer_reads_late_and_hears_when_it_leaves() {
    const LEN: usize = 8 << 20;
    on_both_drivers(|reactors| {
        let (mut client, server) = connected();
        let (report, reported) = channel();
        let serve = move || {
            spawn(&"echoing", async move {
                let mut stream = TcpStream::adopt(server).unwrap();
                let mut all = vec![0; LEN];
                stream.read_exact(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
                report.send(stream.read(&mut [0]).await.unwrap()).unwrap();
            });
        };
        reactors.handles()[0].send(Box::new(serve)).unwrap();
        let sent: Vec<u8> = (0..LEN).map(|index| (index / 7) as u8).collect();
        let (early, late) = sent.split_at(LEN / 2);
        client.write_all(early).unwrap();
        thread::sleep(Duration::from_millis(20));
        client.write_all(late).unwrap();
        // Until here what comes back has filled the socket.
        thread::sleep(Duration::from_millis(20));
        let mut got = vec![0; LEN];
        client.read_exact(&mut got).unwrap();
        assert!(got == sent);
        drop(client);
        assert_eq!(reported.recv_timeout(Duration::from_secs(10)), Ok(0));
    });
}

#[test]
fn a_connection_that_is_dropped_ends_for_its_peer_though_the_reactor_stays_busy() {
    on_both_drivers(|reactors| {
        let (mut client, server) = connected();
        let (report, reported) = channel();
        let serve = move || {
            let over = Rc::new(std::cell::Cell::new(false));
            let busy = over.clone();
            spawn(&"never idle", async move {
                while !busy.get() {
                    yield_now().await;
                }
            });
            spawn(&"dropping", async move {
                let mut stream = TcpStream::adopt(server).unwrap();
                stream.read_exact(&mut [0]).await.unwrap();
                drop(stream);
                sleep(Duration::from_millis(50)).await;
                over.set(true);
                report.send(()).unwrap();
            });
        };
        reactors.handles()[0].send(Box::new(serve)).unwrap();
        client.write_all(&[1]).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        reported.recv_timeout(Duration::from_secs(10)).unwrap();
    });
}

#[test]
fn a_connection_that_is_dropped_ends_though_its_peer_goes_on_writing() {
    on_both_drivers(|reactors| {
        let (mut client, server) = connected();
        client.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let serve = move || {
            spawn(&"dropping", async move {
                let mut stream = TcpStream::adopt(server).unwrap();
                stream.read_exact(&mut [0; 100_000]).await.unwrap();
            });
        };
        reactors.handles()[0].send(Box::new(serve)).unwrap();
        let refused = (0..10_000).find_map(|_| client.write_all(&[0; 16 << 10]).err()).unwrap();
        let kinds = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
        assert!(kinds.contains(&refused.kind()), "{refused}");
    });
}

#[test]
fn connections_end_with_their_reactor() {
    for driver in [Driver::Epoll, Driver::IoUring] {
        let reactors = start(driver, 1);
        let (mut client, server) = connected();
        let serve = move || {
            spawn(&"waiting", async move {
                let mut stream = TcpStream::adopt(server).unwrap();
                stream.write_all(&[1]).await.unwrap();
                let _ = stream.read(&mut [0]).await;
            });
        };
        reactors.handles()[0].send(Box::new(serve)).unwrap();
        client.read_exact(&mut [0]).unwrap();
        reactors.stop();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "{driver}");
    }
}
