//! Both halves of delta xDS against one another, whatever happens between them: what the proxy has comes to what there is.

#[path = "support/session.rs"]
mod session;

use std::collections::HashMap;

use mesh::xds::{ENROLLED_NAMESPACE_TYPE as TYPE, View};
use proptest::prelude::*;

use session::{Proxy, changes, connect, encoded, is_bad, settle};

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8),
    Remove(u8),
    /// One response sent, taken in and answered.
    Deliver(usize),
    /// A response is lost, and the stream with it.
    LoseResponse,
    /// A response is taken in, its answer lost, and the stream with it.
    LoseAnswer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6u8, any::<u8>()).prop_map(|(name, value)| Step::Set(name, value % 20)),
        2 => (0..6u8).prop_map(Step::Remove),
        5 => (1..4usize).prop_map(Step::Deliver),
        1 => Just(Step::LoseResponse),
        1 => Just(Step::LoseAnswer),
    ]
}

proptest! {
    /// After anything, the proxy has what the controller has, or, of what it refuses, what it last took.
    #[test]
    fn converges(steps in proptest::collection::vec(step(), 0..80)) {
        let mut now = View::default();
        let mut values: HashMap<String, u8> = HashMap::new();
        let mut proxy = Proxy::new();
        let mut controller = connect(&proxy);
        for step in steps {
            match step {
                Step::Set(name, value) => {
                    let name = name.to_string();
                    if values.insert(name.clone(), value) != Some(value) {
                        proxy.refused.retain(|(refused, _)| *refused != name);
                    }
                    now.edit().insert(name.as_str().into(), encoded(value));
                }
                Step::Remove(name) => {
                    let name = name.to_string();
                    values.remove(&name);
                    proxy.refused.retain(|(refused, _)| *refused != name);
                    now.edit().remove(name.as_str());
                }
                Step::Deliver(max) => {
                    if let Some(response) = changes(&mut controller, TYPE, &now, max) {
                        prop_assert!(response.resources.len() + response.removed_resources.len() <= max);
                        let answer = proxy.on_response(response);
                        controller.on_request(&answer).expect("valid");
                    }
                }
                Step::LoseResponse => {
                    let _ = changes(&mut controller, TYPE, &now, 2);
                    proxy.refused.clear();
                    controller = connect(&proxy);
                }
                Step::LoseAnswer => {
                    if let Some(response) = changes(&mut controller, TYPE, &now, 2) {
                        let _ = proxy.on_response(response);
                    }
                    proxy.refused.clear();
                    controller = connect(&proxy);
                }
            }
        }
        settle(&mut controller, &mut proxy, &now);
        for (name, value) in &values {
            match proxy.has.get(name) {
                Some(has) if is_bad(*value) => prop_assert!(!is_bad(*has)),
                None => prop_assert!(is_bad(*value)),
                Some(has) => prop_assert_eq!(has, value),
            }
        }
        prop_assert!(proxy.has.keys().all(|name| values.contains_key(name)));
        // And what it says it has is what it has.
        let opening = proxy.open().remove(0).initial_resource_versions;
        for (name, has) in &proxy.has {
            let version = encoded(*has).version().to_string();
            prop_assert_eq!(opening.get(name), Some(&version));
        }
        prop_assert_eq!(opening.len(), proxy.has.len());
    }
}
