//! Logs: text or JSON on standard output, with a filter that can be changed while the process runs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// Changes what is logged, while the process runs. Cheap to clone.
#[derive(Clone)]
pub struct FilterHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    initial: Arc<str>,
}

/// Why logging is not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `LOG_FORMAT`
    #[error("{0:?} is no log format: text or json")]
    Format(String),
    /// `RUST_LOG` and its like.
    #[error("{filter:?} is no log filter: {reason}")]
    Filter {
        /// As given.
        filter: String,
        /// Of the parser.
        reason: String,
    },
    /// Logging was set up before.
    #[error("logging was set up twice")]
    Twice,
}

/// Sets up the process's logs. `filter` is written as `RUST_LOG` is: `info`, `info,mesh=debug,access=off`.
pub fn init(format: LogFormat, filter: &str) -> Result<FilterHandle, TelemetryError> {
    let (subscriber, handle) = subscriber(format, filter, std::io::stdout)?;
    subscriber.try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(handle)
}

/// What [`init`] installs, writing elsewhere: for tests.
pub fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + use<W>, FilterHandle), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(layer).with(lines);
    Ok((
        subscriber,
        FilterHandle {
            filter: handle,
            initial: filter.into(),
        },
    ))
}

// === impl FilterHandle ===

impl FilterHandle {
    /// Takes effect at once; an empty filter goes back to the one the process began with.
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = if filter.is_empty() {
            &*self.initial
        } else {
            filter
        };
        self.filter
            .reload(parse(filter)?)
            .map_err(|error| invalid(filter, &error))
    }

    /// What is logged now.
    pub fn get(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }
}

impl fmt::Debug for FilterHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilterHandle({})", self.get())
    }
}

// === impl LogFormat ===

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" | "plain" | "" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format(text.to_owned())),
        }
    }
}

// === free ===

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| invalid(filter, &error))
}

fn invalid(filter: &str, error: &dyn std::error::Error) -> TelemetryError {
    TelemetryError::Filter {
        filter: filter.to_owned(),
        reason: error.to_string(),
    }
}
