//! The content of CNI configurations: lists of plugins with ours, and without.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::PLUGIN;
use super::InstallError;

/// Ends the names of the lists that we made from single configurations. `-` comes before `.`, so
/// `10-net-ambit.conflist` is read before `10-net.conf`.
const STAND_IN: &str = "-ambit.conflist";

/// Whether runtimes read a file of this name.
pub(super) fn is_config(path: &Path) -> bool {
    extension(path).is_some_and(|e| ["conf", "conflist", "json"].contains(&e))
}

/// Whether a file of this name holds a list of plugins.
pub(super) fn is_list(path: &Path) -> bool {
    extension(path) == Some("conflist")
}

/// Whether we made this list from a single configuration.
pub(super) fn is_stand_in(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.ends_with(STAND_IN))
}

/// The name of the list that takes a single configuration's place.
pub(super) fn stand_in(single: &Path) -> PathBuf {
    let stem = single.file_stem().unwrap_or_default();
    let mut name = stem.to_owned();
    name.push(STAND_IN);
    single.with_file_name(name)
}

/// The list with `entry` in it, or `None` if that is how it is. At the end, unless ours is somewhere already:
/// another plugin that wants to be last is left to be.
pub(super) fn with_plugin(
    path: &Path,
    bytes: &[u8],
    entry: &Value,
) -> Result<Option<Vec<u8>>, InstallError> {
    let mut list = parse(path, bytes)?;
    let plugins = plugins(path, &mut list)?;
    if plugins.iter().filter(|p| is_ours(p)).eq([entry]) {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.is_empty() {
        return Err(invalid(path, "it has no plugin to come after"));
    }
    plugins.push(entry.clone());
    Ok(Some(print(&list)))
}

/// The list without our plugin, or `None` if it has none.
pub(super) fn without_plugin(path: &Path, bytes: &[u8]) -> Result<Option<Vec<u8>>, InstallError> {
    let mut list = parse(path, bytes)?;
    let plugins = plugins(path, &mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.len() == before {
        return Ok(None);
    }
    Ok(Some(print(&list)))
}

/// A list of a single configuration and `entry`.
pub(super) fn from_single(
    path: &Path,
    bytes: &[u8],
    entry: &Value,
) -> Result<Vec<u8>, InstallError> {
    let single = parse(path, bytes)?;
    if !single["type"].is_string() {
        return Err(invalid(path, "it names no plugin"));
    }
    let mut list = json!({ "name": single["name"], "plugins": [single, entry] });
    if let Some(version) = list["plugins"][0].get("cniVersion").cloned() {
        list["cniVersion"] = version;
    }
    Ok(print(&list))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value, InstallError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| invalid(path, &e.to_string()))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(invalid(path, "it is not an object")),
    }
}

fn plugins<'a>(path: &Path, list: &'a mut Value) -> Result<&'a mut Vec<Value>, InstallError> {
    list.get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or_else(|| invalid(path, "it has no list of plugins"))
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

fn print(list: &Value) -> Vec<u8> {
    format!("{list:#}\n").into_bytes()
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|e| e.to_str())
}

fn invalid(path: &Path, reason: &str) -> InstallError {
    InstallError::Invalid {
        path: path.into(),
        reason: reason.into(),
    }
}
