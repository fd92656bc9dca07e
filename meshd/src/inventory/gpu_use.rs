//! For whom the GPUs work, by NVIDIA's management library. Blocking: runs on a blocking thread.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// How long to wait before the library is looked for again.
const RETRY: Duration = Duration::from_secs(60);
/// How far back a process's work counts.
const SPAN: Duration = Duration::from_secs(4);

/// What the busiest card does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct GpuUse {
    /// Percent of the time; absent without a card, or on one that does not tell.
    pub(super) percent: Option<u32>,
    /// Percent for processes that are no model servers; absent where they cannot be told apart, as under a service manager that
    /// hides them from this one.
    pub(super) by_others_percent: Option<u32>,
}

/// Reads the cards, with one handle as long as it works.
#[derive(Debug, Default)]
pub(super) struct GpuUseReader {
    nvml: Option<Nvml>,
    retry_at: Option<Instant>,
}

impl GpuUseReader {
    pub(super) fn read(&mut self) -> GpuUse {
        if self.nvml.is_none() {
            if self.retry_at.is_some_and(|at| Instant::now() < at) {
                return GpuUse::default();
            }
            self.retry_at = Some(Instant::now() + RETRY);
            self.nvml = Nvml::init().ok();
        }
        let Some(nvml) = &self.nvml else {
            return GpuUse::default();
        };
        match read(nvml) {
            Ok(found) => found,
            Err(err) => {
                tracing::debug!(%err, "the GPUs' use cannot be read");
                self.nvml = None;
                GpuUse::default()
            }
        }
    }
}

fn read(nvml: &Nvml) -> Result<GpuUse, NvmlError> {
    let mut found = GpuUse::default();
    let mut is_known = true;
    let mut by_others = 0;
    let since = SystemTime::now().checked_sub(SPAN);
    let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
    let since_us = since.map(|since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        let percent = device.utilization_rates().ok().map(|rates| rates.gpu);
        found.percent = found.percent.max(percent);
        match device.process_utilization_stats(since_us) {
            Ok(samples) => {
                let samples = samples
                    .iter()
                    .map(|sample| (sample.pid, sample.timestamp, sample.sm_util));
                match percent_of_others(samples.collect(), of_model_server) {
                    Some(percent) => by_others = percent.max(by_others),
                    None => is_known = false,
                }
            }
            // No process has worked.
            Err(NvmlError::NotFound) => {}
            Err(_) => is_known = false,
        }
    }
    found.by_others_percent = (is_known && found.percent.is_some()).then_some(by_others);
    Ok(found)
}

/// The work of processes that are no model servers, by their newest samples (pid, time, percent); `None` when it is not known of
/// one that worked what it is.
fn percent_of_others(
    mut samples: Vec<(u32, u64, u32)>,
    of_model_server: impl Fn(u32) -> Option<bool>,
) -> Option<u32> {
    samples.sort_unstable_by_key(|(pid, at, _)| (*pid, std::cmp::Reverse(*at)));
    samples.dedup_by_key(|(pid, _, _)| *pid);
    let mut sum: u32 = 0;
    for (pid, _, percent) in samples {
        if percent > 0 && !of_model_server(pid)? {
            sum = sum.saturating_add(percent);
        }
    }
    Some(sum.min(100))
}

/// Whether a process is a model server's; `None` when nothing is to be seen of it.
fn of_model_server(pid: u32) -> Option<bool> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(is_model_server(
        name.trim_end(),
        &String::from_utf8_lossy(&command),
    ))
}

/// Whether a process by its name, and its arguments with zeros between them, is a model server: Ollama, llama.cpp, vLLM, LM Studio,
/// SGLang, TGI and their children.
fn is_model_server(name: &str, command: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_named = [
        "ollama",
        "llama-server",
        "llama_server",
        "vllm",
        "lm studio",
        "lm-studio",
        "sglang",
        "text-generation",
    ]
    .iter()
    .any(|server| name.starts_with(server));
    let is_script = name.starts_with("python") || name.starts_with("pt_main");
    let runs = |module: &str| command.split('\0').any(|word| word.contains(module));
    is_named
        || (is_script
            && ["vllm", "sglang", "llama_cpp", "text_generation_server"]
                .iter()
                .any(|module| runs(module)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_servers_are_known_by_name_and_by_what_they_run() {
        for (name, command, want) in [
            ("ollama", "/usr/bin/ollama\0serve\0", true),
            ("ollama_llama_se", "", true),
            ("llama-server", "", true),
            ("llama-server-vu", "", true),
            ("VLLM::EngineCor", "", true),
            (
                "python3",
                "python3\0-m\0vllm.entrypoints.openai.api_server\0",
                true,
            ),
            (
                "python3.12",
                "/opt/venv/bin/python\0/opt/venv/bin/vllm\0serve\0",
                true,
            ),
            ("python3", "python3\0train.py\0", false),
            ("blender", "blender\0vllm.blend\0", false),
            ("Game.exe", "", false),
            ("Xorg", "", false),
        ] {
            assert_eq!(is_model_server(name, command), want, "{name} {command}");
        }
    }

    #[test]
    fn the_newest_sample_of_each_process_counts() {
        let is_ours = |pid| Some(pid == 1);
        let samples = vec![(1, 5, 90), (2, 4, 70), (2, 9, 30), (3, 9, 15), (4, 9, 0)];
        assert_eq!(percent_of_others(samples, is_ours), Some(45));
        assert_eq!(percent_of_others(Vec::new(), is_ours), Some(0));
        assert_eq!(
            percent_of_others(vec![(2, 1, 80), (3, 1, 80)], is_ours),
            Some(100)
        );
    }

    #[test]
    fn a_process_that_works_out_of_sight_leaves_it_open_whose_the_work_is() {
        let hidden = |pid| (pid == 1).then_some(true);
        assert_eq!(percent_of_others(vec![(1, 1, 80), (2, 1, 5)], hidden), None);
        assert_eq!(
            percent_of_others(vec![(1, 1, 80), (2, 1, 0)], hidden),
            Some(0)
        );
    }

    #[test]
    fn this_process_is_seen_and_no_model_server() {
        assert_eq!(of_model_server(std::process::id()), Some(false));
        assert_eq!(of_model_server(u32::MAX), None);
    }
}
