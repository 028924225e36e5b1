//! What the machine's GPUs do, as NVIDIA's management library tells it.
//!
//! A thread looks at them now and then, so that nobody who asks for metrics waits for a driver. The
//! library is opened at run time; without it there are no GPUs to tell of.

use std::{fmt::Write as _, io, sync::Arc, thread, time::Duration};

use arc_swap::ArcSwap;
use crossbeam_channel::{Sender, bounded};
use nvml_wrapper::{Nvml, error::NvmlError};

use super::prometheus::head;

/// Where the library's own name may be found, without the development package.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// What is known of one GPU now; what it does not tell is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuUsage {
    /// Its name for good, as `GPU-…`.
    pub uuid: String,
    /// The share of time in which it computed, from 0 to 1.
    pub utilization: Option<f64>,
    /// All its memory.
    pub memory_total_bytes: Option<u64>,
    /// What of that is taken.
    pub memory_used_bytes: Option<u64>,
    /// What it draws, in watts.
    pub power_watts: Option<f64>,
    /// The most that it may draw.
    pub power_limit_watts: Option<f64>,
    /// What it has used since it was started, in joules.
    pub energy_joules: Option<f64>,
}

/// Tells of the GPUs.
pub trait GpuSource: Send {
    /// All of them, in the order of their numbers.
    fn look(&self) -> Vec<GpuUsage>;
}

/// The GPUs' metrics.
pub struct GpuMetrics {
    now: Arc<ArcSwap<Vec<GpuUsage>>>,
    /// Dropped, it ends the thread.
    _stop: Sender<()>,
}

impl GpuMetrics {
    /// Looks at what `source` tells of every `interval`; energy is counted from here on.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(source: impl GpuSource + 'static, interval: Duration) -> io::Result<Self> {
        let first = source.look();
        let energies: Vec<Option<f64>> = first.iter().map(|gpu| gpu.energy_joules).collect();
        let since = move |mut gpus: Vec<GpuUsage>| {
            for (gpu, began) in gpus.iter_mut().zip(&energies) {
                gpu.energy_joules =
                    gpu.energy_joules.zip(*began).map(|(now, began)| (now - began).max(0.0));
            }
            gpus
        };
        let now = Arc::new(ArcSwap::from_pointee(since(first)));
        let (stop, stopped) = bounded::<()>(0);
        let told = now.clone();
        thread::Builder::new().name("gpu-metrics".into()).spawn(move || {
            while stopped.recv_timeout(interval).is_err_and(|error| error.is_timeout()) {
                told.store(Arc::new(since(source.look())));
            }
        })?;
        Ok(Self { now, _stop: stop })
    }

    /// Adds them to a page, under Triton's names.
    pub fn render(&self, page: &mut String) {
        let gpus = self.now.load();
        for (name, help, kind, value) in FAMILIES {
            let told = || gpus.iter().filter_map(|gpu| Some((&gpu.uuid, value(gpu)?)));
            if told().next().is_none() {
                continue;
            }
            head(page, name, help, kind);
            for (uuid, value) in told() {
                // Writing to a string does not fail.
                let _ = writeln!(page, "{name}{{gpu_uuid=\"{uuid}\"}} {value}");
            }
        }
    }
}

/// What a framework keeps in stock of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuStock {
    /// The GPU's number.
    pub gpu: u32,
    /// All that it has taken from the driver.
    pub reserved_bytes: u64,
    /// What of that is in use.
    pub allocated_bytes: u64,
}

/// Adds to a page what back ends, by their names, keep in stock.
pub fn render_stocks(page: &mut String, told: &[(&str, Vec<GpuStock>)]) {
    if told.iter().all(|(_, stocks)| stocks.is_empty()) {
        return;
    }
    type Bytes = fn(&GpuStock) -> u64;
    let families: [(&str, &str, Bytes); 2] = [
        (
            "nereid_gpu_memory_reserved_bytes",
            "GPU memory that a back end's own allocator has taken, in bytes",
            |stock| stock.reserved_bytes,
        ),
        (
            "nereid_gpu_memory_allocated_bytes",
            "GPU memory that a back end's own allocator has given to tensors, in bytes",
            |stock| stock.allocated_bytes,
        ),
    ];
    for (name, help, bytes) in families {
        head(page, name, help, "gauge");
        for (backend, stocks) in told {
            for stock in stocks {
                let (gpu, bytes) = (stock.gpu, bytes(stock));
                // Writing to a string does not fail.
                let _ = writeln!(page, "{name}{{backend=\"{backend}\",gpu=\"{gpu}\"}} {bytes}");
            }
        }
    }
}

type Value = fn(&GpuUsage) -> Option<f64>;

/// Name, help, kind and value.
const FAMILIES: [(&str, &str, &str, Value); 6] = [
    ("nv_gpu_utilization", "GPU utilization rate [0.0 - 1.0)", "gauge", |gpu| gpu.utilization),
    ("nv_gpu_memory_total_bytes", "GPU total memory, in bytes", "gauge", |gpu| {
        gpu.memory_total_bytes.map(|bytes| bytes as f64)
    }),
    ("nv_gpu_memory_used_bytes", "GPU used memory, in bytes", "gauge", |gpu| {
        gpu.memory_used_bytes.map(|bytes| bytes as f64)
    }),
    ("nv_gpu_power_usage", "GPU power usage in watts", "gauge", |gpu| gpu.power_watts),
    ("nv_gpu_power_limit", "GPU power management limit in watts", "gauge", |gpu| {
        gpu.power_limit_watts
    }),
    (
        "nv_energy_consumption",
        "GPU energy consumption in joules since the Triton Server started",
        "counter",
        |gpu| gpu.energy_joules,
    ),
];

/// NVIDIA's management library.
pub struct Management(Nvml);

impl Management {
    /// Opens it.
    ///
    /// # Errors
    /// When it is not there, or there is no driver behind it.
    pub fn open() -> Result<Self, NvmlError> {
        Nvml::builder().lib_path(LIBRARY.as_ref()).init().map(Self)
    }
}

impl GpuSource for Management {
    fn look(&self) -> Vec<GpuUsage> {
        let count = self.0.device_count().unwrap_or(0);
        let gpus = (0..count).filter_map(|index| {
            let gpu = self.0.device_by_index(index).ok()?;
            let memory = gpu.memory_info().ok();
            // In hundredths, milliwatts and millijoules.
            Some(GpuUsage {
                uuid: gpu.uuid().ok()?,
                utilization: gpu.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
                memory_total_bytes: memory.as_ref().map(|memory| memory.total),
                memory_used_bytes: memory.as_ref().map(|memory| memory.used),
                power_watts: gpu.power_usage().ok().map(|power| f64::from(power) / 1000.0),
                power_limit_watts: gpu
                    .power_management_limit()
                    .ok()
                    .map(|power| f64::from(power) / 1000.0),
                energy_joules: gpu.total_energy_consumption().ok().map(|it| it as f64 / 1000.0),
            })
        });
        gpus.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Instant,
    };

    use super::*;

    /// A GPU whose energy grows by a thousand joules with each look, beside one that tells little.
    struct Imagined(AtomicU64);

    impl GpuSource for Imagined {
        fn look(&self) -> Vec<GpuUsage> {
            let energy = self.0.fetch_add(1000, Ordering::Relaxed) as f64;
            let first = GpuUsage {
                uuid: "GPU-1".into(),
                utilization: Some(0.25),
                memory_total_bytes: Some(1 << 40),
                memory_used_bytes: Some(5),
                power_watts: Some(300.5),
                power_limit_watts: Some(700.0),
                energy_joules: Some(energy),
            };
            let second = GpuUsage { uuid: "GPU-2".into(), ..GpuUsage::default() };
            vec![first, GpuUsage { power_watts: Some(80.0), ..second }]
        }
    }

    fn page(metrics: &GpuMetrics) -> String {
        let mut page = String::new();
        metrics.render(&mut page);
        page
    }

    #[test]
    fn each_gpu_is_told_of_with_what_it_tells() {
        let metrics =
            GpuMetrics::start(Imagined(AtomicU64::new(7000)), Duration::from_secs(3600)).unwrap();
        let page = page(&metrics);
        for expected in [
            "# TYPE nv_gpu_utilization gauge\nnv_gpu_utilization{gpu_uuid=\"GPU-1\"} 0.25\n",
            "nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-1\"} 1099511627776\n",
            "nv_gpu_power_usage{gpu_uuid=\"GPU-1\"} 300.5\nnv_gpu_power_usage{gpu_uuid=\"GPU-2\"} 80\n",
            "nv_energy_consumption{gpu_uuid=\"GPU-1\"} 0\n",
        ] {
            assert!(page.contains(expected), "{expected} is not in {page}");
        }
        assert!(!page.contains("nv_gpu_utilization{gpu_uuid=\"GPU-2\"}"), "{page}");
    }

    #[test]
    fn they_are_looked_at_again_and_energy_counts_from_the_start() {
        let metrics =
            GpuMetrics::start(Imagined(AtomicU64::new(7000)), Duration::from_millis(1)).unwrap();
        let patience = Instant::now() + Duration::from_secs(20);
        while page(&metrics).contains("nv_energy_consumption{gpu_uuid=\"GPU-1\"} 0\n") {
            assert!(Instant::now() < patience, "nobody looks");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn without_gpus_nothing_is_told() {
        struct Nothing;
        impl GpuSource for Nothing {
            fn look(&self) -> Vec<GpuUsage> {
                Vec::new()
            }
        }
        let metrics = GpuMetrics::start(Nothing, Duration::from_secs(3600)).unwrap();
        assert_eq!(page(&metrics), "");
    }
}
