//! The echo client: a batch of requests printed as the conformance suite reads them, or a long run with a summary.

mod bench;
mod dial;
mod grpc;
mod hold;
mod http;
mod load;
mod tcp;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::{HeaderName, HeaderValue, Method, Uri};
use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::sync::{Mutex, OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answer::{Answer, split_header};
use super::flags::{self, Flags};
use super::orders::Term;

/// Flags that take no value of their own.
const SWITCHES: [&str; 5] = [
    "http2",
    "server-first",
    "new-connection-per-request",
    "follow-redirects",
    "stdin",
];
/// Requests in one batch; each answer is kept until all are there.
const MAX_COUNT: u32 = 1_000_000;

/// How to talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    Grpc,
    Tcp,
}

/// One request, to be made any number of times.
#[derive(Clone, Debug)]
struct Ask {
    scheme: Scheme,
    /// As it was given.
    url: String,
    host: String,
    port: u16,
    /// Host and port as the URL spells them.
    authority: String,
    path: String,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    message: String,
    http2: bool,
    server_first: bool,
}

/// What the client is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Ask so many times and print every answer.
    Batch(Batch),
    /// Ask at a fixed rate on fresh connections, and sum up.
    Load(load::Load),
    /// Keep one connection, and sum up.
    Hold(hold::Hold),
    /// Ask as fast as it goes, a slice at each order.
    Bench(bench::Bench),
}

/// A number of requests whose answers are printed.
#[derive(Debug)]
pub(crate) struct Batch {
    ask: Ask,
    count: u32,
    /// Requests begun per second; 0 for as fast as it goes.
    qps: u32,
    concurrency: u32,
    /// For the whole batch.
    timeout: Duration,
    fresh: bool,
}

impl Job {
    /// Reads the command line.
    pub(crate) fn from_args(mut args: Vec<String>) -> Result<Self> {
        let mode = match args.first().map(String::as_str) {
            Some("load" | "hold" | "bench") => args.remove(0),
            _ => String::new(),
        };
        let mut flags = Flags::parse(args, &SWITCHES)?;
        let url = flags.last("url").or_else(|| flags.word());
        let ask = Ask::take(url, &mut flags)?;
        let job = match mode.as_str() {
            "load" => Self::Load(load::Load::take(ask, &mut flags)?),
            "hold" => Self::Hold(hold::Hold::take(ask, &mut flags)?),
            "bench" => Self::Bench(bench::Bench::take(ask, &mut flags)?),
            _ => Self::Batch(Batch::take(ask, &mut flags)?),
        };
        flags.finish()?;
        Ok(job)
    }
}

impl Batch {
    fn take(ask: Ask, flags: &mut Flags) -> Result<Self> {
        let batch = Self {
            ask,
            count: flags.or("count", 1, flags::number)?,
            qps: flags.or("qps", 0, flags::number)?,
            concurrency: flags.or("concurrency", 20, flags::number)?.max(1),
            timeout: flags.or("timeout", Duration::from_secs(5), flags::duration)?,
            fresh: flags.or("new-connection-per-request", true, flags::boolean)?,
        };
        ensure!(batch.count <= MAX_COUNT, "--count is more than {MAX_COUNT}");
        ensure!(
            !flags.or("follow-redirects", false, flags::boolean)?,
            "redirects are shown, never followed: --follow-redirects must be false"
        );
        Ok(batch)
    }
}

impl Ask {
    fn take(url: Option<String>, flags: &mut Flags) -> Result<Self> {
        let url = url.context("no URL given")?;
        let uri: Uri = url.parse().with_context(|| format!("URL {url:?}"))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, 80),
            Some("https") => (Scheme::Https, 443),
            Some("grpc") => (Scheme::Grpc, 7070),
            Some("tcp") => (Scheme::Tcp, 9090),
            other => bail!("URL {url:?}: the scheme is {other:?}, not http, https, grpc or tcp"),
        };
        let authority = uri
            .authority()
            .with_context(|| format!("URL {url:?}: no host"))?;
        let mut headers = Vec::new();
        for header in [flags.all("H"), flags.all("header")].concat() {
            let (key, value) =
                split_header(&header).with_context(|| format!("-H {header:?}: not K:V"))?;
            let key = HeaderName::try_from(key.trim()).with_context(|| format!("-H {header:?}"))?;
            let value =
                HeaderValue::try_from(value.trim()).with_context(|| format!("-H {header:?}"))?;
            headers.push((key, value));
        }
        let method = flags.last("method").unwrap_or_else(|| "GET".to_owned());
        Ok(Self {
            scheme,
            host: authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            authority: authority.to_string(),
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
            method: method
                .parse()
                .with_context(|| format!("--method={method}"))?,
            headers,
            message: flags.last("msg").unwrap_or_default(),
            http2: flags.or("http2", false, flags::boolean)?,
            server_first: flags.or("server-first", false, flags::boolean)?,
            url,
        })
    }

    /// An answer to fill in.
    fn answer(&self, status: u16) -> Answer {
        let sent = self
            .headers
            .iter()
            .map(|(key, value)| (key.to_string(), text(value)))
            .collect();
        Answer {
            url: self.url.clone(),
            sent,
            status,
            ..Answer::default()
        }
    }

    /// Asks once on a connection of its own.
    async fn once(&self) -> Result<Answer> {
        match self.scheme {
            Scheme::Http | Scheme::Https => {
                http::Connection::open(self).await?.ask(self, true).await
            }
            Scheme::Grpc => grpc::ask(&grpc::connect(self).await?, self).await,
            Scheme::Tcp => tcp::ask(self).await,
        }
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Prints at once, whatever stdout is.
fn say(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// The time since `start`, in whole milliseconds.
fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Now, in milliseconds of Unix time.
fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Does the job; SIGTERM ends it at once.
pub(crate) async fn main(job: Job) -> ExitCode {
    let done = match job {
        Job::Batch(batch) => batch.main().await,
        Job::Load(load) => load.main().await,
        Job::Hold(hold) => hold.main().await,
        Job::Bench(bench) => bench.main().await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ambit-echo client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Batch {
    /// Prints every answer in order, and every error; true if there was none.
    async fn main(self) -> Result<bool> {
        let mut term = Term::install().context("signals")?;
        let url = self.ask.url.clone();
        let results = tokio::select! {
            results = self.run() => results,
            () = term.recv() => bail!("ended by a signal"),
        };
        let (mut out, mut good) = (String::new(), true);
        for (index, result) in results {
            match result {
                Ok(answer) => {
                    answer.write(index, &mut out)?;
                    out.push('\n');
                }
                Err(error) => {
                    good = false;
                    eprintln!("[{index}] {url}: {error:#}");
                }
            }
        }
        say(&out)?;
        Ok(good)
    }

    /// All results, in the order of their numbers.
    async fn run(self) -> Vec<(usize, Result<Answer>)> {
        let deadline = Instant::now() + self.timeout;
        let ask = Arc::new(self.ask);
        let shared = Arc::new(Shared::new(ask.scheme, self.fresh));
        let permits = Arc::new(Semaphore::new(self.concurrency as usize));
        let mut pace =
            (self.qps > 0).then(|| tokio::time::interval(Duration::from_secs(1) / self.qps));
        let mut tasks = JoinSet::new();
        let mut results = Vec::new();
        for index in 0..self.count as usize {
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            // The semaphore is never closed; if it were, the request would merely go without a permit.
            let permit = permits.clone().acquire_owned().await.ok();
            let (ask, shared, timeout) = (ask.clone(), shared.clone(), self.timeout);
            tasks.spawn(async move {
                let result = match tokio::time::timeout_at(deadline, shared.ask(&ask)).await {
                    Ok(result) => result,
                    Err(_) => Err(anyhow!("no answer within {timeout:?} of the start")),
                };
                drop(permit);
                (index, result)
            });
            while let Some(done) = tasks.try_join_next() {
                results.extend(done.ok());
            }
        }
        while let Some(done) = tasks.join_next().await {
            results.extend(done.ok());
        }
        results.sort_by_key(|(index, _)| *index);
        results
    }
}

/// The connections of a batch.
enum Shared {
    /// One per request.
    Fresh,
    /// HTTP connections kept for the next request.
    Kept(Mutex<Vec<http::Connection>>),
    /// One connection for all gRPC calls, as gRPC clients have it.
    Grpc(OnceCell<grpc::Channel>),
}

impl Shared {
    fn new(scheme: Scheme, fresh: bool) -> Self {
        match scheme {
            Scheme::Grpc => Self::Grpc(OnceCell::new()),
            Scheme::Http | Scheme::Https if !fresh => Self::Kept(Mutex::default()),
            _ => Self::Fresh,
        }
    }

    async fn ask(&self, ask: &Ask) -> Result<Answer> {
        match self {
            Self::Fresh => ask.once().await,
            Self::Kept(idle) => {
                let kept = {
                    let mut idle = idle.lock().await;
                    // A server may close a connection between two requests.
                    idle.retain(http::Connection::is_open);
                    idle.pop()
                };
                let mut connection = match kept {
                    Some(connection) => connection,
                    None => http::Connection::open(ask).await?,
                };
                let answer = connection.ask(ask, false).await?;
                idle.lock().await.push(connection);
                Ok(answer)
            }
            Self::Grpc(channel) => {
                grpc::ask(channel.get_or_try_init(|| grpc::connect(ask)).await?, ask).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Job> {
        Job::from_args(words.iter().map(|w| (*w).to_owned()).collect())
    }

    #[test]
    fn takes_the_suites_command_line() {
        let words = [
            "http://echo/path?a=b",
            "--method=GET",
            "-H",
            "X-Case: a, b",
            "--count=500",
        ];
        let Job::Batch(batch) = parse(&words).expect("as the suite passes it") else {
            panic!("a batch")
        };
        assert_eq!(
            (batch.count, batch.concurrency, batch.fresh),
            (500, 20, true)
        );
        assert_eq!((batch.ask.host.as_str(), batch.ask.port), ("echo", 80));
        assert_eq!(batch.ask.path, "/path?a=b");
        assert_eq!(
            batch.ask.headers,
            [(
                "x-case".parse().expect("name"),
                "a, b".parse().expect("value")
            )]
        );
        let Job::Batch(batch) = parse(&["tcp://[fd00::1]:99"]).expect("IPv6") else {
            panic!("a batch")
        };
        assert_eq!((batch.ask.host.as_str(), batch.ask.port), ("fd00::1", 99));
    }

    #[test]
    fn refuses_nonsense() {
        for words in [
            &[][..],
            &["ftp://a"],
            &["nonsense"],
            &["http://a", "extra"],
            &["http://a", "-H", "nocolon"],
            &["http://a", "-H", "bad name:x"],
            &["http://a", "--follow-redirects"],
            &["http://a", "--count=-1"],
            &["http://a", "--rate=1"],
            &["load"],
            &["load", "--url=http://a", "--rate=0"],
            &["hold", "--url=http://a"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
