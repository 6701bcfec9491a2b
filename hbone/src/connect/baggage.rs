//! What a workload says about itself for telemetry: the `k8s.*` members of W3C baggage.

use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// The longest baggage list (W3C); ours take about 400 bytes.
const MAX_BYTES: usize = 8192;

/// The most members (W3C says at least 64 must be taken).
const MAX_MEMBERS: usize = 64;

/// What a baggage value may not carry as it is.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b',')
    .add(b';')
    .add(b'\\')
    .add(b'%');

/// The kinds of workload that have a member of their own, the usual one first.
const KINDS: [(&str, &str); 4] = [
    ("pod", "k8s.pod.name"),
    ("deployment", "k8s.deployment.name"),
    ("cronjob", "k8s.cronjob.name"),
    ("job", "k8s.job.name"),
];

/// Bytes reserved for a list at once: ours take about 250.
const USUAL: usize = 256;

/// What a workload says about itself. Nobody has verified it: for telemetry only, never for policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<Arc<str>>,
    /// `k8s.namespace.name`
    pub namespace: Option<Arc<str>>,
    /// `k8s.<type>.name`
    pub workload_name: Option<Arc<str>>,
    /// `deployment`, `cronjob`, `pod` or `job`; anything else is sent as `pod`.
    pub workload_type: Option<Arc<str>>,
    /// `service.name`
    pub service_name: Option<Arc<str>>,
    /// `service.version`
    pub service_version: Option<Arc<str>>,
    /// `cloud.region`
    pub region: Option<Arc<str>>,
    /// `cloud.availability_zone`
    pub zone: Option<Arc<str>>,
}

/// Baggage being read, header by header: together they have one bound.
#[derive(Debug, Default)]
pub(super) struct Reading {
    baggage: Baggage,
    bytes: usize,
    members: usize,
}

/// Why a baggage header cannot be read. Unknown members are no reason: they are passed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBaggage {
    /// More than 8192 bytes or 64 members.
    #[error("is too long")]
    TooLong,
    /// A member without `=`, or without a name.
    #[error("has a member that is not name=value")]
    Member,
    /// A value that is not text after unescaping.
    #[error("has a value that is not text for {0}")]
    Value(Arc<str>),
    /// A member we know came twice.
    #[error("has {0} twice")]
    Twice(Arc<str>),
}

// === impl Baggage ===

impl Baggage {
    /// The header's value; nothing where there is nothing to say.
    pub(crate) fn encode(&self) -> Option<String> {
        let kind = self.workload_type.as_deref();
        let known = KINDS.iter().find(|(k, _)| Some(*k) == kind);
        let (_, workload) = known.unwrap_or(&KINDS[0]);
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (*workload, &self.workload_name),
            ("service.name", &self.service_name),
            ("service.version", &self.service_version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut text = String::new();
        for (name, value) in members {
            let Some(value) = value.as_deref().filter(|v| !v.is_empty()) else {
                continue;
            };
            match text.is_empty() {
                true => text.reserve(USUAL),
                false => text.push(','),
            }
            text.push_str(name);
            text.push('=');
            text.extend(utf8_percent_encode(value, ESCAPED));
        }
        (!text.is_empty() && text.len() <= MAX_BYTES).then_some(text)
    }

    /// From all baggage headers of a head.
    #[cfg(test)]
    pub(super) fn decode(headers: &[&str]) -> Result<Self, InvalidBaggage> {
        let mut reading = Reading::default();
        headers.iter().try_for_each(|header| reading.add(header))?;
        Ok(reading.baggage)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), InvalidBaggage> {
        let mut kind = None;
        let slot = match name {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service_name,
            "service.version" => &mut self.service_version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                kind = KINDS.iter().find(|(_, member)| *member == name);
                if kind.is_none() {
                    return Ok(());
                }
                &mut self.workload_name
            }
        };
        if slot.is_some() {
            return Err(InvalidBaggage::Twice(Arc::from(name)));
        }
        // Few have escapes.
        let text = match value.as_bytes().contains(&b'%') {
            true => percent_decode_str(value).decode_utf8(),
            false => Ok(value.into()),
        };
        let text = text.map_err(|_| InvalidBaggage::Value(Arc::from(name)))?;
        if !text.is_empty() {
            *slot = Some(Arc::from(text));
            if let Some((kind, _)) = kind {
                self.workload_type = Some(Arc::from(*kind));
            }
        }
        Ok(())
    }
}

// === impl Reading ===

impl Reading {
    /// Takes the next header.
    pub(super) fn add(&mut self, header: &str) -> Result<(), InvalidBaggage> {
        self.bytes = self.bytes.saturating_add(header.len());
        if self.bytes > MAX_BYTES {
            return Err(InvalidBaggage::TooLong);
        }
        let with_properties = header.as_bytes().contains(&b';');
        let mut rest = Some(header);
        while let Some(text) = rest {
            let (member, more) = cut(text, b',');
            rest = more;
            let member = member.trim_ascii();
            if member.is_empty() {
                continue;
            }
            if self.members == MAX_MEMBERS {
                return Err(InvalidBaggage::TooLong);
            }
            self.members += 1;
            // Properties of a member (`;key=value`) mean nothing to us.
            let (plain, _) = match with_properties {
                true => cut(member, b';'),
                false => (member, None),
            };
            let (name, value) = cut(plain, b'=');
            let value = value.ok_or(InvalidBaggage::Member)?;
            let (name, value) = (name.trim_ascii(), value.trim_ascii());
            if name.is_empty() {
                return Err(InvalidBaggage::Member);
            }
            self.baggage.take(name, value)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Baggage {
        self.baggage
    }
}

/// What stands before the first `at`, and behind it. As `split_once`, which is made for longer texts.
fn cut(text: &str, at: u8) -> (&str, Option<&str>) {
    match text.bytes().position(|b| b == at) {
        Some(n) => (&text[..n], Some(&text[n + 1..])),
        None => (text, None),
    }
}
