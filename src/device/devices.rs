use std::sync::{Arc, OnceLock};

use super::Device;

/// The devices that models can run on, opened when something first asks for them: a GPU's context
/// costs time and memory that a server without models on it should not pay.
pub struct Devices {
    open: Box<Open>,
    opened: OnceLock<Opened>,
}

type Open = dyn Fn() -> Opened + Send + Sync;
type Opened = Result<Vec<Arc<dyn Device>>, String>;

impl Devices {
    /// Those that `open` opens, or why there are none.
    pub fn new(open: impl Fn() -> Opened + Send + Sync + 'static) -> Self {
        Self { open: Box::new(open), opened: OnceLock::new() }
    }

    /// None, for a reason.
    pub fn none(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::new(move || Err(reason.clone()))
    }

    /// All of them; there is at least one.
    ///
    /// # Errors
    /// Why there are none.
    pub fn all(&self) -> Result<&[Arc<dyn Device>], &str> {
        let opened = self.opened.get_or_init(|| match (self.open)() {
            Ok(none) if none.is_empty() => Err("no GPU was found".to_owned()),
            opened => opened,
        });
        opened.as_deref().map_err(String::as_str)
    }

    /// Those that have been opened already.
    pub fn opened(&self) -> &[Arc<dyn Device>] {
        match self.opened.get() {
            Some(Ok(devices)) => devices,
            _ => &[],
        }
    }

    /// The device of a number.
    ///
    /// # Errors
    /// Names those that there are, or why there are none.
    pub fn get(&self, number: usize) -> Result<&Arc<dyn Device>, String> {
        let all = self.all()?;
        all.iter().find(|device| device.properties().index == number).ok_or_else(|| {
            let numbers = all.iter().map(|device| device.properties().index.to_string());
            format!("there is no device {number}, only {}", numbers.collect::<Vec<_>>().join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::device::host::{HostDevice, HostSettings};

    #[test]
    fn devices_are_opened_once_and_when_asked_for() {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let devices = Devices::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let settings = HostSettings { index: 3, ..HostSettings::default() };
            Ok(vec![Arc::new(HostDevice::start(settings).unwrap())])
        });
        assert!(devices.opened().is_empty());
        assert_eq!(devices.get(3).unwrap().properties().index, 3);
        assert_eq!(devices.get(0).err().unwrap(), "there is no device 0, only 3");
        assert_eq!((devices.opened().len(), opened.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn where_there_are_none_the_reason_is_told() {
        assert_eq!(Devices::none("no driver").all().err(), Some("no driver"));
        assert_eq!(Devices::new(|| Ok(Vec::new())).all().err(), Some("no GPU was found"));
    }
}
