//! Logs: text or JSON on standard output, with a filter that can be changed while the process runs. Nobody who logs waits.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;

use prometheus_client::registry::Registry as Metrics;

use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use one_line::OneLine;
use queue::Queue;

mod one_line;
pub mod queue;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// The process's logs. Keep it until the last line is said: dropping it writes what waits, if somebody reads.
#[derive(Debug)]
#[must_use]
pub struct Logs {
    filter: FilterHandle,
    queue: Queue,
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
    /// There is no standard output.
    #[error("cannot log to standard output: {0}")]
    Output(#[from] io::Error),
    /// Logging was set up before.
    #[error("logging was set up twice")]
    Twice,
}

/// Sets up the process's logs. `filter` is written as `RUST_LOG` is: `info`, `info,mesh=debug,access=off`.
pub fn init(format: LogFormat, filter: &str) -> Result<Logs, TelemetryError> {
    // Of our own: the thread that writes must not hold what `println!` needs.
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let queue = Queue::new(output);
    let (subscriber, filter) = subscriber(format, filter, queue.lines())?;
    subscriber.try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(Logs { filter, queue })
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
    let lines = tracing_subscriber::fmt::layer();
    let lines = match format {
        LogFormat::Text => lines.with_writer(OneLine(writer)).with_ansi(false).boxed(),
        LogFormat::Json => lines
            .with_writer(writer)
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

// === impl Logs ===

impl Logs {
    /// Changes what is logged.
    pub fn filter(&self) -> FilterHandle {
        self.filter.clone()
    }

    /// Puts the count of lines that nobody read in time where metrics are read.
    pub fn register(&self, registry: &mut Metrics) {
        self.queue.register(registry);
    }
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
