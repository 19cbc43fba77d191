//! Where and with what it was measured.

use std::fmt;
use std::path::Path;
use std::process::Command;

use postrider_testkit::services::find_binary;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) rabbitmq: String,
    pub(crate) redis: String,
    pub(crate) postgres: String,
    pub(crate) postrider: String,
    /// What the binaries were built of.
    pub(crate) commit: String,
    /// One-minute load before the run: what else the machine was doing.
    pub(crate) load_before: String,
}

impl Machine {
    pub(crate) fn look(postrider: Option<&Path>, commit: String) -> Self {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let value = text
                .lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let memory: u64 = field("/proc/meminfo", "MemTotal")
            .split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            memory_gib: memory / 1_048_576,
            kernel: first_line(Path::new("uname"), &["-sr"]),
            rabbitmq: rabbitmq(),
            redis: installed("redis-server", &["--version"]),
            postgres: installed("postgres", &["--version"]),
            postrider: postrider.map_or("not built".into(), |path| first_line(path, &["--version"])),
            commit,
            load_before: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} · {} · commit {}", self.date, self.postrider, self.commit)?;
        writeln!(
            f,
            "{} cores ({}), {} GiB, {}, load before: {}",
            self.cores, self.processor, self.memory_gib, self.kernel, self.load_before
        )?;
        write!(
            f,
            "RabbitMQ {} · {} · {}",
            self.rabbitmq, self.redis, self.postgres
        )
    }
}

fn installed(name: &str, args: &[&str]) -> String {
    find_binary(name).map_or_else(|| "not installed".into(), |path| first_line(&path, args))
}

/// The version is in the name of the library's directory; asking the server itself would need a running node.
fn rabbitmq() -> String {
    let entries = std::fs::read_dir("/usr/lib/rabbitmq/lib")
        .into_iter()
        .flatten()
        .flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .find_map(|name| Some(name.strip_prefix("rabbitmq_server-")?.to_owned()))
        .unwrap_or_default()
}

fn first_line(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
