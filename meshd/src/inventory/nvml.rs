//! GPUs by NVIDIA's management library, which is loaded when it is there. Blocking: runs on a blocking thread.

use std::time::{Duration, Instant};

use mesh_proto::share::Gpu;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper::{cuda_driver_version_major, cuda_driver_version_minor};

/// How long to wait before the library is looked for again.
const RETRY: Duration = Duration::from_secs(60);

/// The most instances of one card that are looked for; there are seven at most today.
const N_INSTANCES_MAX: u32 = 16;

/// Where readings come from; tests have their own.
pub(crate) trait GpuSource: Send {
    /// All cards.
    fn read(&mut self) -> Result<Vec<Gpu>, NvmlError>;
}

impl GpuSource for Nvml {
    fn read(&mut self) -> Result<Vec<Gpu>, NvmlError> {
        let driver = self.sys_driver_version().ok();
        let cuda = self.sys_cuda_driver_version().ok().map(|version| {
            let (major, minor) = (
                cuda_driver_version_major(version),
                cuda_driver_version_minor(version),
            );
            format!("{major}.{minor}")
        });
        let told = |device: &Device<'_>| Gpu {
            driver: driver.clone(),
            cuda: cuda.clone(),
            ..read(device)
        };
        let mut gpus = Vec::new();
        for index in 0..self.device_count()? {
            let card = self.device_by_index(index)?;
            let instances = instances(&card);
            if instances.is_empty() {
                gpus.push(told(&card));
            }
            gpus.extend(instances.iter().map(|instance| Gpu {
                is_mig: Some(true),
                ..told(instance)
            }));
        }
        Ok(gpus)
    }
}

/// Any field may be unsupported on a consumer card or under MIG.
fn read(device: &Device<'_>) -> Gpu {
    let memory = device.memory_info().ok();
    Gpu {
        name: device.name().unwrap_or_else(|_| "NVIDIA GPU".to_owned()),
        uuid: device.uuid().ok(),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_milliwatts: device.power_usage().ok(),
        is_mig: device.mig_mode().ok().map(|mode| mode.current == 1),
        ..Gpu::default()
    }
}

/// The instances that a card is cut into; none when it is whole, or when they cannot be seen.
fn instances<'nvml>(card: &Device<'nvml>) -> Vec<Device<'nvml>> {
    let is_cut = card.mig_mode().is_ok_and(|mode| mode.current == 1);
    if !is_cut {
        return Vec::new();
    }
    // The most that there can be: places without an instance are skipped.
    let n_max = card.mig_device_count().unwrap_or(0).min(N_INSTANCES_MAX);
    (0..n_max)
        .filter_map(|index| card.mig_device_by_index(index).ok())
        .collect()
}

type Open = fn() -> Option<Box<dyn GpuSource>>;

/// Reads the GPUs, with one handle as long as it works.
pub(crate) struct GpuReader {
    open: Open,
    source: Option<Box<dyn GpuSource>>,
    retry_at: Option<Instant>,
}

impl Default for GpuReader {
    fn default() -> Self {
        Self::new(open_nvml)
    }
}

fn open_nvml() -> Option<Box<dyn GpuSource>> {
    match Nvml::init() {
        Ok(nvml) => Some(Box::new(nvml)),
        Err(err) => {
            tracing::debug!(%err, "no NVIDIA driver");
            None
        }
    }
}

impl GpuReader {
    fn new(open: Open) -> Self {
        Self {
            open,
            source: None,
            retry_at: None,
        }
    }

    /// The cards; none without a driver.
    pub(crate) fn read(&mut self) -> Vec<Gpu> {
        if self.source.is_none() {
            if self.retry_at.is_some_and(|at| Instant::now() < at) {
                return Vec::new();
            }
            self.source = (self.open)();
        }
        let Some(source) = &mut self.source else {
            self.retry_at = Some(Instant::now() + RETRY);
            return Vec::new();
        };
        match source.read() {
            Ok(gpus) => gpus,
            Err(err) => {
                tracing::warn!(%err, "the GPUs cannot be read");
                self.source = None;
                self.retry_at = Some(Instant::now() + RETRY);
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Flaky(u32);

    impl GpuSource for Flaky {
        fn read(&mut self) -> Result<Vec<Gpu>, NvmlError> {
            self.0 += 1;
            if self.0 == 2 {
                return Err(NvmlError::GpuLost);
            }
            Ok(vec![Gpu {
                name: "card".to_owned(),
                ..Gpu::default()
            }])
        }
    }

    #[test]
    fn a_lost_card_drops_the_handle_and_a_missing_driver_is_no_error() {
        let mut reader = GpuReader::new(|| Some(Box::new(Flaky(0))));
        assert_eq!(reader.read().len(), 1);
        assert!(reader.read().is_empty());
        assert!(reader.source.is_none());
        assert!(reader.read().is_empty(), "waits before it tries again");
        reader.retry_at = None;
        assert_eq!(reader.read().len(), 1);
        let mut none = GpuReader::new(|| None);
        assert!(none.read().is_empty());
        assert!(none.retry_at.is_some());
    }
}
