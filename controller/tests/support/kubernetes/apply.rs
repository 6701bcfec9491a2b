//! Patches: merge patches, and server-side apply with field ownership as far as lists of conditions need it.

use serde_json::{Map, Value};

/// What tells the items of a list apart; a list without is one value.
fn keys(field: &str) -> Option<&'static [&'static str]> {
    match field {
        "conditions" => Some(&["type"]),
        "listeners" | "containers" | "volumes" | "env" => Some(&["name"]),
        "ownerReferences" => Some(&["uid"]),
        "ports" => Some(&["port", "containerPort", "protocol"]),
        _ => None,
    }
}

fn same_item(field: &str, a: &Value, b: &Value) -> bool {
    keys(field).is_some_and(|keys| keys.iter().all(|key| a[*key] == b[*key]))
}

/// RFC 7396.
pub fn merge_patch(target: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut merged = target.as_object().cloned().unwrap_or_default();
    for (field, value) in patch {
        if value.is_null() {
            merged.remove(field);
        } else {
            let before = merged.get(field).unwrap_or(&Value::Null);
            merged.insert(field.clone(), merge_patch(before, value));
        }
    }
    Value::Object(merged)
}

/// Replaces the object but for its status, or only that.
pub fn put_part(before: &Value, wanted: &Value, status: bool) -> Value {
    let mut after = if status {
        before.clone()
    } else {
        wanted.clone()
    };
    let from = if status { wanted } else { before };
    if let (Value::Object(after), Some(kept)) = (&mut after, from.get("status")) {
        after.insert("status".to_owned(), kept.clone());
    }
    after
}

/// Server-side apply: what is wanted is there; what was applied last, is no longer wanted and nobody else's, goes.
pub fn apply(before: &Value, wanted: &Value, last: &Value, others: &[Value]) -> Value {
    let others: Vec<&Value> = others.iter().collect();
    let pruned = prune("", before, wanted, last, &others);
    lay("", &pruned, wanted)
}

/// `wanted` over `before`, lists by their keys.
fn lay(field: &str, before: &Value, wanted: &Value) -> Value {
    match (before, wanted) {
        (Value::Object(before), Value::Object(wanted)) => {
            let mut after = before.clone();
            for (name, value) in wanted {
                let was = before.get(name).unwrap_or(&Value::Null);
                after.insert(name.clone(), lay(name, was, value));
            }
            Value::Object(after)
        }
        (Value::Array(before), Value::Array(wanted)) if keys(field).is_some() => {
            let mut after = before.clone();
            for item in wanted {
                match after.iter_mut().find(|one| same_item(field, one, item)) {
                    Some(one) => *one = lay("", one, item),
                    None => after.push(item.clone()),
                }
            }
            Value::Array(after)
        }
        (_, wanted) => wanted.clone(),
    }
}

/// `before` without what only `last` had.
fn prune(field: &str, before: &Value, wanted: &Value, last: &Value, others: &[&Value]) -> Value {
    match (before, last) {
        (Value::Object(before), Value::Object(last)) => {
            let mut after = Map::new();
            for (name, value) in before {
                let theirs: Vec<&Value> = others.iter().filter_map(|one| one.get(name)).collect();
                match (last.get(name), wanted.get(name)) {
                    (Some(_), None) if theirs.is_empty() => {}
                    (Some(last), wanted) => {
                        let wanted = wanted.unwrap_or(&Value::Null);
                        after.insert(name.clone(), prune(name, value, wanted, last, &theirs));
                    }
                    (None, _) => drop(after.insert(name.clone(), value.clone())),
                }
            }
            Value::Object(after)
        }
        (Value::Array(before), Value::Array(last)) if keys(field).is_some() => {
            let find = |list: &Value, item: &Value| -> Option<Value> {
                let list = list.as_array()?;
                list.iter().find(|one| same_item(field, one, item)).cloned()
            };
            let last = Value::Array(last.clone());
            let after = before.iter().filter_map(|item| {
                let theirs: Vec<Value> = others.iter().filter_map(|one| find(one, item)).collect();
                match (find(&last, item), find(wanted, item)) {
                    (Some(_), None) if theirs.is_empty() => None,
                    (Some(last), wanted) => {
                        let theirs: Vec<&Value> = theirs.iter().collect();
                        let wanted = wanted.unwrap_or(Value::Null);
                        Some(prune("", item, &wanted, &last, &theirs))
                    }
                    (None, _) => Some(item.clone()),
                }
            });
            Value::Array(after.collect())
        }
        _ => before.clone(),
    }
}

/// The first field that somebody else applied with another value.
pub fn conflict(theirs: &Value, wanted: &Value) -> Option<String> {
    differs("", theirs, wanted)
}

fn differs(field: &str, theirs: &Value, wanted: &Value) -> Option<String> {
    match (theirs, wanted) {
        (Value::Object(theirs), Value::Object(wanted)) => {
            wanted.iter().find_map(|(name, value)| {
                let their = theirs.get(name)?;
                differs(name, their, value).map(|rest| format!(".{name}{rest}"))
            })
        }
        (Value::Array(theirs), Value::Array(wanted)) if keys(field).is_some() => {
            wanted.iter().find_map(|item| {
                let their = theirs.iter().find(|one| same_item(field, one, item))?;
                differs("", their, item).map(|rest| format!("[]{rest}"))
            })
        }
        (theirs, wanted) => (theirs != wanted).then(String::new),
    }
}

/// What somebody applied, without what somebody else took over.
pub fn without(theirs: &Value, taken: &Value) -> Value {
    strip("", theirs, taken).unwrap_or(Value::Object(Map::new()))
}

fn strip(field: &str, theirs: &Value, taken: &Value) -> Option<Value> {
    match (theirs, taken) {
        (Value::Object(theirs), Value::Object(taken)) => {
            let left = theirs.iter().filter_map(|(name, value)| {
                let left = match taken.get(name) {
                    Some(taken) => strip(name, value, taken)?,
                    None => value.clone(),
                };
                Some((name.clone(), left))
            });
            Some(Value::Object(left.collect()))
        }
        (Value::Array(theirs), Value::Array(taken)) if keys(field).is_some() => {
            let left = theirs.iter().filter_map(|item| {
                match taken.iter().find(|one| same_item(field, one, item)) {
                    // Its keys stay, or it could not be found again.
                    Some(taken) => strip("", item, taken).map(|mut left| {
                        for key in keys(field).unwrap_or_default() {
                            if let Some(value) = item.get(*key) {
                                left[*key] = value.clone();
                            }
                        }
                        left
                    }),
                    None => Some(item.clone()),
                }
            });
            Some(Value::Array(left.collect()))
        }
        // What both want alike is both's.
        (theirs, taken) => (theirs == taken).then(|| theirs.clone()),
    }
}
