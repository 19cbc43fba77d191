//! The process's log lines: to standard error, so that standard output stays the commands' own.

use std::io::Write;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: one line each.
    Text,
    /// For machines: one JSON object a line, the event's fields at its top level.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level does not parse.
    #[error(
        "`{level}` is no log level; give `error`, `warn`, `info`, `debug`, `trace` or `off`, or a list such as `info,lapin=warn`"
    )]
    Level {
        /// What was given.
        level: String,
        /// What the parser said.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// It was set up before.
    #[error("logging is set up already")]
    Repeated(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// Sends log lines to standard error. `level` is a level for everything, or a comma-separated list of
/// `target=level` with such a level among them. Once in a process.
///
/// # Errors
/// When `level` does not parse, or logging is set up already.
pub fn init_logging(format: LogFormat, level: &str) -> Result<(), LoggingError> {
    let subscriber = subscriber(format, level, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(LoggingError::Repeated)
}

fn subscriber<W>(
    format: LogFormat,
    level: &str,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, LoggingError>
where
    W: for<'w> MakeWriter<'w, Writer: Write> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(level).map_err(|source| LoggingError::Level {
        level: level.to_owned(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    Ok(match format {
        LogFormat::Text => Box::new(builder.with_ansi(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).with_span_list(false).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(format, level, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(delivery.id = "dlv_1", "delivered");
            tracing::debug!("hidden");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn writes_lines_at_the_level_and_above() {
        let text = logged(LogFormat::Text, "info");
        assert!(
            text.contains("INFO") && text.contains("delivered delivery.id=\"dlv_1\""),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(logged(LogFormat::Text, "debug").lines().count(), 2);
    }

    #[test]
    fn json_has_the_fields_at_the_top() {
        let text = logged(LogFormat::Json, "info");
        assert!(
            text.starts_with('{') && text.contains("\"delivery.id\":\"dlv_1\""),
            "{text}"
        );
        assert!(
            text.contains("\"message\":\"delivered\"") && !text.contains("\"fields\""),
            "{text}"
        );
    }

    #[test]
    fn refuses_an_unknown_level_with_words() {
        let error = init_logging(LogFormat::Text, "info,postrider=loud").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`info,postrider=loud` is no log level"),
            "{error}"
        );
    }
}
