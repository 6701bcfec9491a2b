//! What ends a running mode: a signal, or its owner's word on stdin.

use std::process::ExitCode;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What the run is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Say how it goes so far.
    Now,
    /// End; what is under way may finish.
    Stop,
    /// End at once (SIGTERM, SIGINT).
    Quit,
}

/// The signals that end the process. As PID 1 none of them does so by itself.
pub(crate) struct Term {
    term: Signal,
    int: Signal,
}

impl Term {
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Where orders come from.
pub(crate) struct Orders {
    term: Term,
    stdin: Option<mpsc::Receiver<Order>>,
}

impl Orders {
    /// Listens for signals and, if `stdin`, for lines.
    pub(crate) fn listen(stdin: bool) -> std::io::Result<Self> {
        let stdin = stdin.then(|| {
            let (to, from) = mpsc::channel(1);
            tokio::spawn(read_stdin(to));
            from
        });
        Ok(Self {
            term: Term::install()?,
            stdin,
        })
    }

    /// The next order; waits for ever if none comes.
    pub(crate) async fn next(&mut self) -> Order {
        let line = async {
            match &mut self.stdin {
                Some(from) => from.recv().await.unwrap_or(Order::Stop),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.term.recv() => Order::Quit,
            order = line => order,
        }
    }
}

async fn read_stdin(to: mpsc::Sender<Order>) {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    // The end of input drops `to`, which the listener reads as a stop: nobody is left who wants the run.
    while let Ok(Some(line)) = lines.next_line().await {
        let order = match line.trim() {
            "now" => Order::Now,
            "stop" => Order::Stop,
            other => {
                eprintln!("ambit-echo: no order is called {other:?}");
                continue;
            }
        };
        if to.send(order).await.is_err() {
            return;
        }
    }
}

/// Does nothing until it is told to end.
pub(crate) async fn sleep() -> ExitCode {
    match Term::install() {
        Ok(mut term) => {
            term.recv().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ambit-echo: no signals: {error}");
            ExitCode::FAILURE
        }
    }
}
