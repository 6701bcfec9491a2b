//! What the fuzz targets call: each takes any bytes, and panics where something that must hold does not.

use crate::head::{self, Answer, HeadError};
use crate::hpack::Decoder;
use crate::limits::MAX_HEADER_LIST;
use crate::{SpiffeId, TrustDomain};

mod bytes;
mod sent;
mod session;
#[cfg(test)]
mod tests;

pub use bytes::{client_bytes, server_bytes};

/// A header block as a request, a response and trailers: what is taken says the same once more.
pub fn connect_head(data: &[u8]) {
    let fresh = Decoder::new;
    if let Ok(request) = head::request(&mut fresh(), data) {
        let block = request.to_block();
        assert!(block.len() <= MAX_HEADER_LIST as usize, "{request:?}");
        assert_eq!(head::request(&mut fresh(), &block), Ok(request));
    }
    match head::response(&mut fresh(), data) {
        Ok(Answer::Opened(response)) => {
            let block = response.to_block();
            let again = head::response(&mut fresh(), &block);
            assert_eq!(again, Ok(Answer::Opened(response)));
        }
        Ok(Answer::Refused(refusal)) => {
            assert!(!refusal.status.is_success());
            assert!(!refusal.reason.contains(char::is_control), "{refusal:?}");
            let block = refusal.to_block();
            let again = head::response(&mut fresh(), &block);
            assert_eq!(again, Ok(Answer::Refused(refusal)));
        }
        Ok(Answer::Interim) | Err(_) => {}
    }
    table_stays_right(data);
}

/// Whatever the meaning of a block, the table after it is the same: two decoders that read it as different things
/// agree on the next block.
fn table_stays_right(data: &[u8]) {
    let (mut one, mut other) = (Decoder::new(), Decoder::new());
    let first = (
        broken(&head::request(&mut one, data)),
        broken(&head::trailers(&mut other, data)),
    );
    assert_eq!(first.0, first.1);
    if first.0 {
        return;
    }
    let all = |decoder: &mut Decoder| {
        let mut fields = Vec::new();
        let done = decoder.decode(data, |name, value| {
            fields.push((name.to_vec(), value.to_vec()));
        });
        (done, fields)
    };
    assert_eq!(all(&mut one), all(&mut other));
    // As after our SETTINGS are acknowledged: nothing is remembered any more.
    one.set_limit(0);
    let _ = all(&mut one);
}

fn broken<T>(read: &Result<T, HeadError>) -> bool {
    matches!(read, Err(HeadError::Broken(_)))
}

/// Texts as SPIFFE IDs and trust domains: what is taken is taken as it is, and nothing but what the standard allows.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        assert_eq!(id.as_str(), text);
        assert!(text.len() <= 2048);
        let domain = id.trust_domain();
        assert!(id.is_in(&domain));
        assert_eq!(text, format!("spiffe://{domain}{}", id.path()));
        assert_eq!(domain.as_str().parse(), Ok(domain.clone()));
        let foreign = |c: char| !(c.is_ascii_alphanumeric() || "/.-_".contains(c));
        assert!(!id.path().contains(foreign), "{id}");
        assert!(
            id.path()
                .split('/')
                .skip(1)
                .all(|part| !matches!(part, "" | "." | ".."))
        );
        if let Some((namespace, name)) = id.service_account() {
            let again = SpiffeId::for_service_account(&domain, namespace, name);
            assert_eq!(again, Ok(id.clone()));
        }
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
        assert!(format!("spiffe://{text}/a").parse::<SpiffeId>().is_ok());
    }
    // Two lines are a namespace and a name: whatever they are, the path stays theirs alone.
    if let Some((namespace, name)) = text.split_once('\n')
        && let Ok(id) = SpiffeId::for_service_account(&TrustDomain::default(), namespace, name)
    {
        assert_eq!(id.service_account(), Some((namespace, name)));
    }
}
