//! Records that a peer may send, and those it may not.

use super::*;
use crate::tls::lab::ends;

#[tokio::test]
async fn a_record_is_opened_once_and_only_whole() {
    let (mut near, mut far) = ends().await;
    let record = near.seal(b"text").unwrap();
    for len in 0..record.len() {
        let mut part = record[..len].to_vec();
        assert_eq!(far.records().open(&mut part), Ok(Opened::More));
    }
    let opened = Opened::Data {
        plain: HEAD..HEAD + 4,
        used: record.len(),
    };
    assert_eq!(far.records().open(&mut record.clone()), Ok(opened));
    assert_eq!(
        far.records().open(&mut record.clone()),
        Err(RecordError::BadTag)
    );
}
