//! Flags as Go programs take them: `-f v`, `--f=v`, `--f v`, a bare `--f` for booleans, values that repeat.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The words of a command line, sorted into flags and the rest; each flag is taken once by whoever knows it.
#[derive(Debug)]
pub(crate) struct Flags {
    given: Vec<(String, String)>,
    rest: Vec<String>,
}

impl Flags {
    /// Sorts `args`; names in `switches` take no value of their own.
    pub(crate) fn parse(args: Vec<String>, switches: &[&str]) -> Result<Self> {
        let (mut given, mut rest) = (Vec::new(), Vec::new());
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg
                .strip_prefix("--")
                .or_else(|| arg.strip_prefix('-'))
                .filter(|f| !f.is_empty())
            else {
                rest.push(arg);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None if switches.contains(&flag) => (flag, "true".to_owned()),
                None => (
                    flag,
                    args.next()
                        .with_context(|| format!("{arg} needs a value"))?,
                ),
            };
            given.push((name.to_owned(), value));
        }
        Ok(Self { given, rest })
    }

    /// Every value given for `name`, in order.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        self.given
            .extract_if(.., |(n, _)| n == name)
            .map(|(_, value)| value)
            .collect()
    }

    /// The last value given for `name`.
    pub(crate) fn last(&mut self, name: &str) -> Option<String> {
        self.all(name).pop()
    }

    /// The last value of `name`, parsed by `parse`, or `default`.
    pub(crate) fn or<T>(
        &mut self,
        name: &str,
        default: T,
        parse: impl Fn(&str) -> Result<T>,
    ) -> Result<T> {
        match self.last(name) {
            Some(text) => parse(&text).with_context(|| format!("--{name}={text}")),
            None => Ok(default),
        }
    }

    /// Every port given for `name`.
    pub(crate) fn ports(&mut self, name: &str) -> Result<Vec<u16>> {
        self.all(name)
            .iter()
            .map(|p| p.parse().with_context(|| format!("--{name}={p}")))
            .collect()
    }

    /// The next word that is no flag.
    pub(crate) fn word(&mut self) -> Option<String> {
        (!self.rest.is_empty()).then(|| self.rest.remove(0))
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some((name, _)) = self.given.first() {
            bail!("no flag is called --{name}");
        }
        if let Some(word) = self.rest.first() {
            bail!("what is {word:?}?");
        }
        Ok(())
    }
}

/// A Go duration: `5s`, `1m30s`, `0.5s`, `200ms`, or a bare `0`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0_f64;
    let mut left = text;
    while !left.is_empty() {
        let digits = left
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .context("a number without a unit")?;
        let (number, tail) = left.split_at(digits);
        let number: f64 = number.parse().context("not a number")?;
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        total += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => bail!("no unit of time is called {unit:?}"),
            };
        left = tail;
    }
    if text.is_empty() {
        bail!("an empty duration");
    }
    Duration::try_from_secs_f64(total).context("too long")
}

/// `true` or `false`, as Go reads them.
pub(crate) fn boolean(text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "true" | "T" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "false" | "F" | "FALSE" | "False" => Ok(false),
        _ => bail!("neither true nor false"),
    }
}

/// An IP address.
pub(crate) fn ip(text: &str) -> Result<IpAddr> {
    text.parse().context("not an IP address")
}

/// A whole number.
pub(crate) fn number(text: &str) -> Result<u32> {
    text.parse().context("not a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn reads_go_flags() {
        let mut flags = Flags::parse(
            words("http://a/ --port=1 -port 2 --http2 -H a:b --count 7 x"),
            &["http2"],
        )
        .expect("parses");
        assert_eq!(flags.ports("port").expect("ports"), [1, 2]);
        assert!(flags.or("http2", false, boolean).expect("bool"));
        assert_eq!(flags.last("H").as_deref(), Some("a:b"));
        assert_eq!(flags.or("count", 1, number).expect("count"), 7);
        assert_eq!(flags.word().as_deref(), Some("http://a/"));
        assert_eq!(flags.word().as_deref(), Some("x"));
        flags.finish().expect("nothing left");
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let flags = Flags::parse(words("--nonsense=1"), &[]).expect("parses");
        assert!(
            flags
                .finish()
                .expect_err("unknown")
                .to_string()
                .contains("--nonsense")
        );
        assert!(Flags::parse(words("--count"), &[]).is_err());
        let mut flags = Flags::parse(words("--port=70000"), &[]).expect("parses");
        assert!(flags.ports("port").is_err());
    }

    #[test]
    fn reads_go_durations() {
        for (text, ms) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("0.5s", 500),
            ("200ms", 200),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(text).expect(text),
                Duration::from_millis(ms),
                "{text}"
            );
        }
        for text in ["", "5", "s", "5x", "-1s", "1..2s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
