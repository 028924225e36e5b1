//! What is told of tensors that the server keeps on devices from one run to the next.

use std::fmt::Write as _;

use super::prometheus::head;

/// Why tensors of a batch came to the host, although they could have stayed on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The server keeps as much there as it may.
    Budget,
    /// The device had no memory for them, or it was needed for other batches.
    Memory,
    /// Their shapes only the run told, or a framework left them in a place of its own choice.
    Shape,
}

impl Fallback {
    /// All of them with their names in the metrics, in the order of their numbers.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Budget, "budget"), (Self::Memory, "memory"), (Self::Shape, "shape")];
}

/// What is kept on one device now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptTensors {
    /// The device's number.
    pub device: usize,
    /// The bytes of the tensors.
    pub bytes: usize,
    /// The most that they may take.
    pub limit: usize,
}

type Value = fn(&KeptTensors) -> usize;

/// Name, help and value.
const FAMILIES: [(&str, &str, Value); 2] = [
    (
        "nereid_device_kept_bytes",
        "Bytes of tensors that stay on a device from one run to the next",
        |kept| kept.bytes,
    ),
    (
        "nereid_device_kept_limit_bytes",
        "Most bytes of tensors that may stay on a device from one run to the next",
        |kept| kept.limit,
    ),
];

/// Adds to a page what devices keep.
pub fn render(page: &mut String, devices: &[KeptTensors]) {
    for (name, help, value) in FAMILIES.iter().filter(|_| !devices.is_empty()) {
        head(page, name, help, "gauge");
        for kept in devices {
            // Writing to a string does not fail.
            let _ = writeln!(page, "{name}{{device=\"{}\"}} {}", kept.device, value(kept));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_that_keeps_tensors_is_told_of() {
        let mut page = String::new();
        render(&mut page, &[]);
        assert_eq!(page, "");
        let kept = |device, bytes| KeptTensors { device, bytes, limit: 100 };
        render(&mut page, &[kept(0, 7), kept(3, 0)]);
        let expected = "# TYPE nereid_device_kept_bytes gauge\n\
                        nereid_device_kept_bytes{device=\"0\"} 7\n\
                        nereid_device_kept_bytes{device=\"3\"} 0\n";
        assert!(page.contains(expected), "{page}");
        assert!(page.contains("nereid_device_kept_limit_bytes{device=\"3\"} 100\n"), "{page}");
    }
}
