//! What processes cost: CPU time and memory, read from `/proc`.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};

/// What one named process costs, the processes below it included.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU-seconds since it started, user and system.
    pub(crate) cpu_s: f64,
    /// Memory that is resident; pages shared by several processes count for each.
    pub(crate) rss_mib: f64,
}

/// Usage by name.
pub(crate) type Table = BTreeMap<String, Usage>;

struct Line {
    pid: u32,
    parent: u32,
    name: String,
    /// Its own time and that of its children which ended.
    usage: Usage,
}

/// Our direct children, each with all that runs below it, by the name in `names` or else the program's.
pub(crate) fn children(names: &HashMap<u32, String>) -> Result<Table> {
    let own = std::process::id();
    let lines = processes()?;
    let parents: HashMap<u32, u32> = lines.iter().map(|line| (line.pid, line.parent)).collect();
    let programs: HashMap<u32, &str> = lines.iter().map(|line| (line.pid, line.name.as_str())).collect();
    let mut table = Table::new();
    for line in &lines {
        let Some(child) = child_above(line.pid, own, &parents) else {
            continue;
        };
        let name = match names.get(&child) {
            Some(name) => name.clone(),
            None => service_name(programs.get(&child).copied().unwrap_or_default()),
        };
        let sum = table.entry(name).or_default();
        sum.cpu_s += line.usage.cpu_s;
        sum.rss_mib += line.usage.rss_mib;
    }
    Ok(table)
}

/// CPU-seconds that this process used.
pub(crate) fn own_cpu_s() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").context("cannot read /proc")?;
    Ok(parse(&text)
        .context("/proc/self/stat is not as expected")?
        .usage
        .cpu_s)
}

/// The ancestor of `pid` (or itself) that is a direct child of `root`.
fn child_above(mut pid: u32, root: u32, parents: &HashMap<u32, u32>) -> Option<u32> {
    for _ in 0..64 {
        match parents.get(&pid)? {
            parent if *parent == root => return Some(pid),
            parent => pid = *parent,
        }
    }
    None
}

fn service_name(program: &str) -> String {
    match program {
        "beam.smp" => "broker",
        "redis-server" => "redis",
        other => other,
    }
    .to_owned()
}

fn processes() -> Result<Vec<Line>> {
    let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
    let numbers = entries.flatten().filter(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<u32>().is_ok())
    });
    // One that ends meanwhile is not there any more.
    Ok(numbers
        .filter_map(|entry| parse(&std::fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect())
}

/// A line of `/proc/PID/stat`; see proc(5).
fn parse(text: &str) -> Option<Line> {
    let (pid, rest) = text.split_once(" (")?;
    // The name may contain spaces and brackets.
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let field = |place: usize| fields.get(place - 3)?.parse::<f64>().ok();
    let ticks = field(14)? + field(15)? + field(16)? + field(17)?;
    Some(Line {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        name: name.to_owned(),
        usage: Usage {
            cpu_s: ticks / crate::figures::figure(rustix::param::clock_ticks_per_second()),
            rss_mib: field(24)? * crate::figures::figure(rustix::param::page_size() as u64) / 1_048_576.0,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_children_are_found_with_their_memory() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let names = HashMap::from([(child.id(), "sleeper".to_owned())]);
        let started = std::time::Instant::now();
        // Right after the exec it has touched no page of its own yet.
        let mut table = children(&names).unwrap();
        while table["sleeper"].rss_mib == 0.0 && started.elapsed().as_secs() < 20 {
            std::thread::yield_now();
            table = children(&names).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(table["sleeper"].rss_mib > 0.0, "{table:?}");
    }

    #[test]
    fn a_name_with_brackets_does_not_move_the_fields() {
        let mut text = String::from("12 (a) b) S 3");
        for field in 5..=52 {
            text.push_str(&format!(" {field}"));
        }
        let line = parse(&text).unwrap();
        assert_eq!((line.pid, line.parent, line.name.as_str()), (12, 3, "a) b"));
        let ticks = crate::figures::figure(rustix::param::clock_ticks_per_second());
        assert!((line.usage.cpu_s - 62.0 / ticks).abs() < 1e-9);
    }
}
