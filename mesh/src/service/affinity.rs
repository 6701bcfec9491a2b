//! Session affinity on the wire: an extension of our own, because the discovery API has no word for it. Whoever does not
//! know it passes over it.

use std::time::Duration;

use prost::Message;
use prost_types::Any;

use crate::proto::workload::Extension;
use crate::workload::InvalidWorkload;

/// The extension's name. Its content is a `google.protobuf.Duration`: how long a client is remembered.
const NAME: &str = "ambit.mesh/session-affinity";

const TYPE_URL: &str = "type.googleapis.com/google.protobuf.Duration";

/// As much as Kubernetes allows: a day.
const MOST_SECONDS: u64 = 86_400;

/// Says that each client stays with its endpoint until it has not come for so long.
pub fn session_affinity(timeout: Duration) -> Extension {
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let duration = prost_types::Duration { seconds, nanos: 0 };
    Extension {
        name: NAME.to_owned(),
        config: Some(Any {
            type_url: TYPE_URL.to_owned(),
            value: duration.encode_to_vec(),
        }),
    }
}

/// What [`session_affinity`] said, if anything.
pub(super) fn read(extensions: &[Extension]) -> Result<Option<Duration>, InvalidWorkload> {
    let Some(found) = extensions.iter().find(|one| one.name == NAME) else {
        return Ok(None);
    };
    let config = found.config.as_ref().filter(|any| any.type_url == TYPE_URL);
    let timeout = config.and_then(|any| {
        let read = prost_types::Duration::decode(any.value.as_slice()).ok()?;
        u64::try_from(read.seconds).ok()
    });
    let timeout = timeout.ok_or(InvalidWorkload::Missing("time-out of session affinity"))?;
    Ok(Some(Duration::from_secs(timeout.min(MOST_SECONDS))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_and_what_is_wrong_is_refused() {
        let said = session_affinity(Duration::from_secs(10_800));
        let other = Extension {
            name: "example.com/other".to_owned(),
            config: None,
        };
        let read_said = read(&[other.clone(), said.clone()]);
        assert_eq!(read_said, Ok(Some(Duration::from_secs(10_800))));
        let forever = read(&[session_affinity(Duration::MAX)]);
        assert_eq!(forever, Ok(Some(Duration::from_secs(86_400))));
        assert_eq!(read(&[other]), Ok(None));
        let of = |type_url: &str, value: &[u8]| Extension {
            config: Some(Any {
                type_url: type_url.to_owned(),
                value: value.to_vec(),
            }),
            ..said.clone()
        };
        let negative = prost_types::Duration {
            seconds: -1,
            nanos: 0,
        };
        for wrong in [
            of("type.googleapis.com/google.protobuf.Any", &[]),
            of(TYPE_URL, &[0xff]),
            of(TYPE_URL, &negative.encode_to_vec()),
        ] {
            assert!(read(&[wrong]).is_err());
        }
    }
}
