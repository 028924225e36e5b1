use std::{
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use bytes::Bytes;

use super::*;
use crate::{
    device::{
        Argument, Device, DeviceError, DeviceMemory, HostArgument, Kernel, KernelSource, Landing,
        Report, Scalar, Stream, Urgency, Visit, VisitError, VisitWork,
    },
    inference::Timestamp,
    memory::BufferPool,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Adds a number to every byte.
fn add() -> KernelSource {
    KernelSource {
        name: "add".into(),
        image: None,
        twin: Some(Arc::new(|_, arguments| {
            let [HostArgument::Write(bytes), HostArgument::Scalar(Scalar::U32(number))] = arguments
            else {
                return Err("expected bytes and a number".to_owned());
            };
            bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(*number as u8));
            Ok(())
        })),
    }
}

fn launch_add(stream: &mut dyn Stream, kernel: &Kernel, memory: &DeviceMemory, number: u32) {
    let launch = kernel.launch([1; 3], [1; 3]).with(Argument::Write(memory.whole()));
    stream.launch(launch.with(Argument::Scalar(Scalar::U32(number)))).unwrap();
}

fn tell(stream: &mut dyn Stream, sender: &Sender<Report>) {
    let sender = sender.clone();
    stream.call(Box::new(move |report| sender.send(report).unwrap())).unwrap();
}

/// Runs a test on threads and in virtual time; it is given what lets the device go on.
fn on_both(settings: &HostSettings, test: impl Fn(&HostDevice, &dyn Fn())) {
    test(&HostDevice::start(settings.clone()).unwrap(), &|| {});
    let simulation = Simulation::new(SimulationSettings::default());
    test(&simulation.device(settings.clone()), &|| simulation.run());
}

#[test]
fn streams_run_in_order_and_events_order_streams() {
    on_both(&HostSettings::default(), |device, go| {
        let kernel = device.kernel(&add()).unwrap();
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let memory = device.allocate(4).unwrap();
        let (mut copies_in, mut compute, mut copies_out) = (
            device.stream(Urgency::Normal).unwrap(),
            device.stream(Urgency::Normal).unwrap(),
            device.stream(Urgency::Urgent).unwrap(),
        );
        let (there, done, free) =
            (device.event().unwrap(), device.event().unwrap(), device.event().unwrap());
        let (report, reports) = channel();
        let mut landings = Vec::new();
        for round in 0..20 {
            copies_in.wait(&free).unwrap();
            copies_in.copy_in(Bytes::from(vec![round; 4]), &memory.whole()).unwrap();
            copies_in.record(&there).unwrap();
            compute.wait(&there).unwrap();
            launch_add(&mut *compute, &kernel, &memory, 100);
            compute.record(&done).unwrap();
            copies_out.wait(&done).unwrap();
            let (landing, target) = Landing::new(pool.allocate(4).unwrap());
            copies_out.copy_out(&memory.whole(), target).unwrap();
            copies_out.record(&free).unwrap();
            landings.push(landing);
        }
        tell(&mut *copies_out, &report);
        go();
        assert_eq!(reports.recv_timeout(PATIENCE).unwrap().outcome, Ok(()));
        for (round, landing) in landings.into_iter().enumerate() {
            assert_eq!(landing.finish().unwrap(), vec![100 + round as u8; 4]);
        }
        drop(memory);
        assert_eq!(device.free_bytes(), HostSettings::default().memory_bytes);
    });
}

#[test]
fn a_graph_does_again_what_was_captured() {
    on_both(&HostSettings::default(), |device, go| {
        let kernel = device.kernel(&add()).unwrap();
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let (memory, copy) = (device.allocate(2).unwrap(), device.allocate(2).unwrap());
        let mut stream = device.stream(Urgency::Normal).unwrap();
        stream.begin_capture().unwrap();
        assert!(matches!(
            stream.copy_in(Bytes::from_static(b"ab"), &memory.whole()),
            Err(DeviceError::Capture { .. })
        ));
        launch_add(&mut *stream, &kernel, &memory, 1);
        stream.copy_within(&memory.whole(), &copy.whole()).unwrap();
        let graph = stream.end_capture().unwrap();
        assert!(matches!(stream.end_capture(), Err(DeviceError::Capture { .. })));
        stream.fill(&memory.whole(), 5).unwrap();
        stream.replay(&graph).unwrap();
        stream.replay(&graph).unwrap();
        let (landing, target) = Landing::new(pool.allocate(2).unwrap());
        stream.copy_out(&copy.whole(), target).unwrap();
        let (report, reports) = channel();
        tell(&mut *stream, &report);
        go();
        assert_eq!(reports.recv_timeout(PATIENCE).unwrap().outcome, Ok(()));
        assert_eq!(landing.finish().unwrap(), vec![7, 7]);
    });
}

#[test]
fn a_failure_is_reported_once_and_leaves_poison() {
    let at = vec![(FaultKind::Copy, 0, Fault::Fail), (FaultKind::Allocation, 1, Fault::Fail)];
    let faults = Faults { at, ..Faults::default() };
    on_both(&HostSettings { faults, ..HostSettings::default() }, |device, go| {
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let memory = device.allocate(2).unwrap();
        assert!(device.allocate(2).err().unwrap().is_out_of_memory());
        let mut stream = device.stream(Urgency::Normal).unwrap();
        let (report, reports) = channel();
        stream.copy_in(Bytes::from_static(b"ab"), &memory.whole()).unwrap();
        let (landing, target) = Landing::new(pool.allocate(2).unwrap());
        stream.copy_out(&memory.whole(), target).unwrap();
        tell(&mut *stream, &report);
        tell(&mut *stream, &report);
        go();
        let first = reports.recv_timeout(PATIENCE).unwrap().outcome;
        assert!(matches!(first, Err(DeviceError::Copy { bytes: 2, .. })), "{first:?}");
        assert_eq!(reports.recv_timeout(PATIENCE).unwrap().outcome, Ok(()));
        assert_eq!(landing.finish().unwrap(), vec![POISON; 2]);
    });
}

#[test]
fn a_lost_device_still_calls_everybody() {
    let faults = Faults { at: vec![(FaultKind::Launch, 0, Fault::Lose)], ..Faults::default() };
    on_both(&HostSettings { faults, ..HostSettings::default() }, |device, go| {
        let kernel = device.kernel(&add()).unwrap();
        let memory = device.allocate(2).unwrap();
        let (mut stream, mut other) =
            (device.stream(Urgency::Normal).unwrap(), device.stream(Urgency::Normal).unwrap());
        let event = device.event().unwrap();
        let (report, reports) = channel();
        launch_add(&mut *stream, &kernel, &memory, 1);
        let _ = stream.record(&event);
        let _ = other.wait(&event);
        tell(&mut *stream, &report);
        tell(&mut *other, &report);
        go();
        let outcomes = [(); 2].map(|()| reports.recv_timeout(PATIENCE).unwrap().outcome);
        assert!(outcomes.iter().any(|it| it.as_ref().is_err_and(DeviceError::is_lost)));
        assert!(device.lost().is_some());
        assert!(device.allocate(1).err().unwrap().is_lost());
        assert!(stream.fill(&memory.whole(), 0).is_err_and(|error| error.is_lost()));
    });
}

#[test]
fn what_belongs_to_another_device_is_refused() {
    on_both(&HostSettings::default(), |device, _| {
        let settings = HostSettings { index: 1, ..HostSettings::default() };
        let other = HostDevice::start(settings).unwrap();
        let (memory, foreign) = (device.allocate(2).unwrap(), other.allocate(2).unwrap());
        let mut stream = device.stream(Urgency::Normal).unwrap();
        let is_foreign = |result| matches!(result, Err(DeviceError::Foreign { device: 0, .. }));
        assert!(is_foreign(stream.fill(&foreign.whole(), 1)));
        assert!(is_foreign(stream.wait(&other.event().unwrap())));
        let kernel = other.kernel(&add()).unwrap();
        assert!(is_foreign(stream.launch(kernel.launch([1; 3], [1; 3]))));
        let kernel = device.kernel(&add()).unwrap();
        let empty = stream.launch(kernel.launch([1, 0, 1], [1; 3]));
        assert!(matches!(empty, Err(DeviceError::Launch { .. })));
        let uneven = stream.copy_in(Bytes::from_static(b"abc"), &memory.whole());
        assert_eq!(uneven, Err(DeviceError::Lengths { device: 0, from: 3, to: 2 }));
    });
}

#[test]
fn a_twin_that_fails_or_panics_fails_its_launch() {
    on_both(&HostSettings::default(), |device, go| {
        let source = KernelSource {
            name: "broken".into(),
            image: None,
            twin: Some(Arc::new(|grid, _| match grid[0] {
                1 => Err("one block is too few".to_owned()),
                _ => panic!("too many blocks"),
            })),
        };
        let kernel = device.kernel(&source).unwrap();
        let mut stream = device.stream(Urgency::Normal).unwrap();
        let (report, reports) = channel();
        for (blocks, reason) in [(1, "one block is too few"), (2, "its twin panicked")] {
            stream.launch(kernel.launch([blocks, 1, 1], [1; 3])).unwrap();
            tell(&mut *stream, &report);
            go();
            let outcome = reports.recv_timeout(PATIENCE).unwrap().outcome;
            let (kernel, reason) = ("broken".to_owned(), reason.to_owned());
            assert_eq!(outcome, Err(DeviceError::Launch { device: 0, kernel, reason }));
        }
    });
}

#[test]
fn virtual_time_follows_the_links_and_the_shared_host() {
    let link = Link { latency: Duration::from_micros(10), bytes_per_second: 1e9 };
    // How long `copies` of a megabyte take, each on a device of its own.
    let copied = |copies: usize, host_bytes_per_second| {
        let settings =
            SimulationSettings { host_bytes_per_second, ..SimulationSettings::default() };
        let simulation = Simulation::new(settings);
        let devices: Vec<_> = (0..copies)
            .map(|index| {
                let copy_in = Some(link);
                simulation.device(HostSettings { index, copy_in, ..HostSettings::default() })
            })
            .collect();
        for device in &devices {
            let memory = device.allocate(1_000_000).unwrap();
            let mut stream = device.stream(Urgency::Normal).unwrap();
            stream.copy_in(Bytes::from(vec![0; 1_000_000]), &memory.whole()).unwrap();
        }
        simulation.run();
        assert!(devices.iter().all(HostDevice::is_idle));
        simulation.now() - Timestamp::default()
    };
    assert_eq!(copied(1, None), Duration::from_micros(1010));
    assert_eq!(copied(4, None), Duration::from_micros(1010));
    assert_eq!(copied(4, Some(2e9)), Duration::from_micros(2010));
    assert_eq!(copied(1, Some(0.5e9)), Duration::from_micros(2010));
}

#[test]
fn the_same_seed_takes_the_same_course() {
    let course = |seed| {
        let settings = SimulationSettings { seed, jitter: 0.3, ..SimulationSettings::default() };
        let simulation = Simulation::new(settings);
        let device = simulation.device(HostSettings::default());
        let kernel = device.kernel(&add()).unwrap();
        let (report, reports) = channel();
        for _ in 0..20 {
            let memory = device.allocate(1).unwrap();
            let mut stream = device.stream(Urgency::Normal).unwrap();
            let mut launch = kernel.launch([1; 3], [1; 3]).with(Argument::Write(memory.whole()));
            launch.cost = Duration::from_micros(100);
            stream.launch(launch.with(Argument::Scalar(Scalar::U32(1)))).unwrap();
            tell(&mut *stream, &report);
        }
        simulation.run();
        reports.try_iter().map(|report| report.busy).collect::<Vec<_>>()
    };
    assert_eq!(course(1).len(), 20);
    assert_eq!(course(1), course(1));
    assert_ne!(course(1), course(2));
}

#[test]
fn engines_of_one_device_work_beside_each_other() {
    let link = Some(Link { latency: Duration::from_millis(1), bytes_per_second: 1e12 });
    let simulation = Simulation::new(SimulationSettings::default());
    let device =
        simulation.device(HostSettings { copy_in: link, copy_out: link, ..Default::default() });
    let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
    let memory = [(); 4].map(|()| device.allocate(8).unwrap());
    let mut streams = [(); 4].map(|()| device.stream(Urgency::Normal).unwrap());
    for (stream, memory) in streams.iter_mut().zip(&memory).take(2) {
        stream.copy_in(Bytes::from(vec![0; 8]), &memory.whole()).unwrap();
    }
    let (_landing, target) = Landing::new(pool.allocate(8).unwrap());
    streams[2].copy_out(&memory[2].whole(), target).unwrap();
    let kernel = device.kernel(&add()).unwrap();
    let mut launch = kernel.launch([1; 3], [1; 3]).with(Argument::Write(memory[3].whole()));
    launch.cost = Duration::from_millis(2);
    streams[3].launch(launch.with(Argument::Scalar(Scalar::U32(1)))).unwrap();
    simulation.run();
    // Two copies in, one behind the other; the copy out and the launch beside them.
    assert_eq!((simulation.now() - Timestamp::default()).as_millis(), 2);
}

#[test]
fn a_library_works_in_its_turn_and_its_errors_are_those_of_the_stream() {
    on_both(&HostSettings::default(), |device, go| {
        let mut stream = device.stream(Urgency::Normal).unwrap();
        let memory = device.allocate(4).unwrap();
        let (report, reports) = channel();
        let mut visit = |work: VisitWork| {
            stream.fill(&memory.whole(), 7).unwrap();
            let (who, writes) = ("a library".into(), vec![memory.whole()]);
            stream.visit(Visit { who, reads: Vec::new(), writes, work }).unwrap();
            tell(&mut *stream, &report);
            go();
            reports.recv_timeout(PATIENCE).unwrap().outcome
        };
        let first = std::ptr::with_exposed_provenance::<u8>(memory.whole().address() as usize);
        let address = first.addr();
        // SAFETY: the visit reads these bytes, which the fill before it has written.
        let read = move || unsafe { *std::ptr::with_exposed_provenance::<u8>(address) };
        assert_eq!(
            visit(Box::new(move |_| match read() {
                7 => Ok(()),
                other => Err(VisitError::Failed(format!("{other} is not what was filled in"))),
            })),
            Ok(())
        );
        let failed = |reason: &str, out_of_memory| {
            let (who, reason) = ("a library".to_owned(), reason.to_owned());
            Err(DeviceError::Visit { device: 0, who, reason, out_of_memory })
        };
        let full = Box::new(|_: &mut dyn crate::device::Visited| {
            Err(VisitError::OutOfMemory("full".to_owned()))
        });
        assert_eq!(visit(full), failed("full", true));
        assert_eq!(visit(Box::new(|_| panic!("oh"))), failed("it panicked: oh", false));
        stream.begin_capture().unwrap();
        let (reads, writes) = (Vec::new(), Vec::new());
        let work = Box::new(|_: &mut dyn crate::device::Visited| Ok(()));
        let visit = Visit { who: "a library".into(), reads, writes, work };
        assert!(matches!(stream.visit(visit), Err(DeviceError::Capture { .. })));
    });
}
