//! The log of this process, as `log.format` and `log.level` say.

use postrider_config::{Config, LogFormat};

/// Begins to log. Once a process.
pub(crate) fn begin(config: &Config) -> anyhow::Result<()> {
    let format = match config.log.format {
        LogFormat::Text => postrider_telemetry::LogFormat::Text,
        LogFormat::Json => postrider_telemetry::LogFormat::Json,
    };
    Ok(postrider_telemetry::init_logging(format, &config.log.level)?)
}
