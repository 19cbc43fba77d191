//! `postrider top`: the status, live in the terminal, once a second, with what passes a second when the process at the
//! configured address serves its metrics. Ends at `q` or Ctrl-C. Without a terminal it prints once.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use postrider_config::Config;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::out::say;
use crate::status::{Options, Report, Source};

const EVERY: Duration = Duration::from_secs(1);
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Shows the status until it is ended.
pub(crate) async fn run(config: Config, options: Options) -> anyhow::Result<()> {
    let source = Source::new(&config, options).await?;
    if std::io::stdout().is_terminal() {
        live(&source).await?;
    } else {
        say(Source::text(&source.report().await?).trim_end())?;
    }
    source.close().await;
    Ok(())
}

async fn live(source: &Source) -> anyhow::Result<()> {
    let signalled = crate::shutdown::signalled();
    tokio::pin!(signalled);
    let screen = Screen::enter()?;
    let mut quit = quit_key();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<(Instant, Report)> = None;
    loop {
        tokio::select! {
            () = &mut signalled => return Ok(()),
            Some(()) = quit.recv() => return Ok(()),
            _ = ticks.tick() => {}
        }
        // A look may take seconds when a service is away; the keys work all the same.
        let report = tokio::select! {
            () = &mut signalled => return Ok(()),
            Some(()) = quit.recv() => return Ok(()),
            report = source.report() => report,
        };
        match report {
            Ok(report) => {
                let now = Instant::now();
                let mut text = Source::text(&report);
                if let Some((at, before)) = &last {
                    rates(&mut text, before, &report, now.duration_since(*at));
                }
                text.push_str("\nq quits\n");
                screen.draw(&text)?;
                last = Some((now, report));
            }
            Err(error) => screen.draw(&format!("no status: {error:#}\n\nq quits\n"))?,
        }
    }
}

/// What passed in a second, from the counters of two reports.
fn rates(text: &mut String, before: &Report, now: &Report, time: Duration) {
    let (Some(before), Some(now)) = (&before.process, &now.process) else {
        return;
    };
    let rate = |before: Option<f64>, now: Option<f64>| {
        // A counter that fell belongs to a process that started again.
        Some((now? - before?).max(0.0) / time.as_secs_f64().max(0.001))
    };
    let rates = [
        (
            "accepted",
            rate(before.messages_accepted_total, now.messages_accepted_total),
        ),
        ("attempts", rate(before.attempts_total, now.attempts_total)),
        (
            "recorded",
            rate(before.records_written_total, now.records_written_total),
        ),
    ];
    let shown = rates
        .into_iter()
        .filter_map(|(name, rate)| Some(format!("{name} {:.0}", rate?)));
    let shown: Vec<String> = shown.collect();
    if !shown.is_empty() {
        let _ = writeln!(text, "\na second   {}", shown.join(", "));
    }
}

/// The other screen of the terminal, without echo; left when dropped.
struct Screen {
    saved: Option<Termios>,
}

impl Screen {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        // Without a keyboard only Ctrl-C or a signal ends it.
        let saved = tcgetattr(&stdin).ok();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        }
        write(ENTER)?;
        Ok(Self { saved })
    }

    /// Over what was there, cut to the terminal's size, so that nothing flickers or scrolls.
    fn draw(&self, text: &str) -> std::io::Result<()> {
        let size = tcgetwinsize(std::io::stdout()).ok();
        let (rows, columns) = size
            .filter(|size| size.ws_row > 0 && size.ws_col > 0)
            .map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()));
        let mut frame = String::from("\x1b[H");
        for line in text.lines().take(rows - 1) {
            frame.extend(line.chars().take(columns));
            frame.push_str("\x1b[K\r\n");
        }
        frame.push_str("\x1b[J");
        write(&frame)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = write(LEAVE);
        if let Some(saved) = &self.saved {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, saved);
        }
    }
}

fn write(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Tells when `q` is pressed. The thread ends with the process.
fn quit_key() -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let quits = |key: &std::io::Result<u8>| matches!(key, Ok(b'q' | b'Q'));
        // The end of the input is no wish to end.
        if std::io::stdin().lock().bytes().any(|key| quits(&key)) {
            let _ = sender.blocking_send(());
        }
    });
    receiver
}
