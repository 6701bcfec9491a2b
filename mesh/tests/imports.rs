//! No module of a program takes names from one that takes names from it, over however many others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// Where the crates are whose modules are looked at.
const CRATES: [&str; 5] = ["hbone", "mesh", "ztunnel", "waypoint", "controller"];

/// Which top-level module takes names from which others.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_crate_has_an_import_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let circles: Vec<String> = CRATES
        .iter()
        .filter_map(|name| {
            let imports = imports_of(&root.join(name).join("src"));
            assert!(imports.len() > 5, "{name} has hardly a module: {imports:?}");
            Some(format!("{name}: {}", circle(&imports)?.join(" -> ")))
        })
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found() {
    let of = |pairs: &[(&str, &str)]| {
        let mut imports = Imports::new();
        for (from, to) in pairs {
            imports
                .entry((*from).into())
                .or_default()
                .insert((*to).into());
        }
        circle(&imports)
    };
    assert_eq!(of(&[("a", "b"), ("a", "c"), ("b", "c")]), None);
    let round = of(&[("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")]);
    assert_eq!(round.unwrap(), ["b", "c", "d", "b"]);
}

#[test]
fn imports_are_seen_however_they_are_written() {
    let text = "
        use crate::{one::A, two::{self, B}};
        pub(crate) use super::three;
        fn f() -> crate::four::C { super::five::g() }
        #[cfg(test)] mod tests { use crate::six; use super::*; }";
    let mut seen = Seen::new(vec!["own".into(), "inner".into()]);
    seen.visit_file(&syn::parse_file(text).unwrap());
    let seen: Vec<&str> = seen.names.iter().map(String::as_str).collect();
    // What `super` names is in the same top-level module here.
    assert_eq!(seen, ["four", "one", "own", "two"]);
}

/// The first circle there is, as the way around it.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    let mut clear = BTreeSet::new();
    imports
        .keys()
        .find_map(|start| circle_from(start, imports, &mut Vec::new(), &mut clear))
}

fn circle_from(
    module: &str,
    imports: &Imports,
    way: &mut Vec<String>,
    clear: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(begin) = way.iter().position(|passed| passed == module) {
        let mut circle = way.split_off(begin);
        circle.push(module.to_owned());
        return Some(circle);
    }
    if clear.contains(module) {
        return None;
    }
    way.push(module.to_owned());
    for next in imports.get(module).into_iter().flatten() {
        if let Some(circle) = circle_from(next, imports, way, clear) {
            return Some(circle);
        }
    }
    way.pop();
    clear.insert(module.to_owned());
    None
}

fn imports_of(src: &Path) -> Imports {
    let files = files_under(src);
    let module_of = |file: &PathBuf| -> Vec<String> {
        let inside = file.strip_prefix(src).unwrap().with_extension("");
        inside
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect()
    };
    let modules: BTreeSet<String> = files.iter().map(|file| module_of(file).remove(0)).collect();
    let mut imports = Imports::new();
    for file in &files {
        let module = module_of(file);
        let own = module[0].clone();
        // What a program begins with takes from all, and none take from there but what the crate shows.
        if ["lib", "main"].contains(&own.as_str()) {
            continue;
        }
        let mut seen = Seen::new(module);
        seen.visit_file(&syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap());
        let others = seen.names.into_iter();
        let others = others.filter(|name| *name != own && modules.contains(name));
        imports.entry(own.clone()).or_default().extend(others);
    }
    imports
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let generated = path.ends_with("gen");
        let tests = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !generated {
            files.extend(files_under(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") && !tests {
            files.push(path);
        }
    }
    files
}

/// The top-level modules that a file names, its tests aside.
struct Seen {
    /// The file's own module, from the top.
    module: Vec<String>,
    names: BTreeSet<String>,
}

impl Seen {
    fn new(module: Vec<String>) -> Self {
        Self {
            module,
            names: BTreeSet::new(),
        }
    }

    fn path(&mut self, path: &[String]) {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let from_top = match path.first().map(String::as_str) {
            Some("crate") => path.get(1),
            Some("super") if ups < self.module.len() => self.module.first(),
            Some("super") => path.get(ups),
            _ => None,
        };
        self.names.extend(from_top.cloned());
    }

    fn tree(&mut self, before: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(before, &path.tree);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(before, tree)),
            UseTree::Name(name) => {
                self.path(&[before.clone(), vec![name.ident.to_string()]].concat());
            }
            UseTree::Rename(name) => {
                self.path(&[before.clone(), vec![name.ident.to_string()]].concat());
            }
            UseTree::Glob(_) => self.path(before),
        }
    }
}

impl<'ast> Visit<'ast> for Seen {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => &[],
        };
        let is_test = |attribute: &Attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|what| what.is_ident("test"))
        };
        if !attributes.iter().any(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_use_tree(&mut self, tree: &'ast UseTree) {
        self.tree(&mut Vec::new(), tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.path(&parts);
        visit::visit_path(self, path);
    }
}
