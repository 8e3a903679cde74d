//! `xbus wsdl`: a route and a mapping for each operation of a WSDL, to begin with.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use xbus_http::outline::{Outline, Outlines};
use xbus_http::wsdl::{Operation, Wsdl};

use super::output::{self, Failure};

/// Write a route and a mapping for each operation of a WSDL
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  xbus wsdl shop.wsdl                    routes for its operations, in this installation
  xbus wsdl shop.wsdl --out /srv/bus     the same in another one
  xbus check                             finds nothing wrong with them

The WSDL and what it imports are copied into transforms/. Files that are there already stay, and
nothing is written then.
Exit codes: 0 done, 1 the WSDL cannot be used or a file is there already, 2 wrong use.")]
pub struct Args {
    /// A WSDL 1.1; what it imports lies beside or below it
    file: PathBuf,
    /// The installation folder
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    output::finish(execute(args), args.json)
}

fn execute(args: &Args) -> Result<(), Failure> {
    let folder = args.file.parent().unwrap_or(Path::new(""));
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let main = args
        .file
        .file_name()
        .ok_or_else(|| Failure::wrong_use("name a WSDL file"))?;
    let (wsdl, findings) = Wsdl::load(folder, Path::new(main));
    let Some(wsdl) = wsdl else {
        let said: Vec<String> = findings
            .iter()
            .map(|finding| {
                format!(
                    "{}:{}: {}",
                    finding.file.display(),
                    finding.line,
                    finding.message
                )
            })
            .collect();
        return Err(Failure::failed(said.join("\n")).help("name a WSDL 1.1 with a SOAP binding"));
    };
    let stem = slug(&Path::new(main).with_extension("").to_string_lossy());
    let files = files(folder, &wsdl, &stem, &main.to_string_lossy())?;
    for path in files.keys() {
        let path = args.out.join(path);
        if path.exists() {
            return Err(
                Failure::failed(format!("{} is there already", path.display()))
                    .help("take it away, or name another folder with --out"),
            );
        }
    }
    for (path, content) in &files {
        write(&args.out.join(path), content)
            .map_err(|error| Failure::failed(format!("{path} cannot be written: {error}")))?;
    }
    let names: Vec<&String> = files.keys().collect();
    if args.json {
        output::print_json(&json!({ "files": names }));
    } else {
        for name in names {
            output::print(&format!("{name}\n"));
        }
        let out = args.out.display();
        output::print(&format!("\nNext: xbus check {out}\n"));
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = fs::File::create_new(path)?;
    std::io::Write::write_all(&mut file, content)
}

/// Every file to write, by its path in the installation.
fn files(
    folder: &Path,
    wsdl: &Wsdl,
    stem: &str,
    main: &str,
) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let mut files = BTreeMap::new();
    for name in wsdl.files() {
        let content = fs::read(folder.join(name))
            .map_err(|error| Failure::failed(format!("{name} cannot be read: {error}")))?;
        files.insert(format!("transforms/{stem}/{name}"), content);
    }
    let outlines = Outlines::of(wsdl);
    let mut known: BTreeSet<String> = BTreeSet::new();
    for operation in &wsdl.operations {
        // The same operation over SOAP 1.1 and 1.2 is one route.
        let element = operation.input.first().map(ToString::to_string);
        if !known.insert(element.unwrap_or_default()) {
            continue;
        }
        let mut name = slug(&operation.name);
        while files.contains_key(&format!("routes/{stem}-{name}.yaml")) {
            name.push_str("-2");
        }
        let skeleton = Skeleton::new(&outlines, operation, stem, &name, main);
        files.insert(
            format!("routes/{stem}-{name}.yaml"),
            skeleton.route().into_bytes(),
        );
        files.insert(
            format!("transforms/{stem}/{name}.rhai"),
            skeleton.mapping().into_bytes(),
        );
    }
    Ok(files)
}

/// A name for files and routes: words in small letters, joined by hyphens.
fn slug(name: &str) -> String {
    let mut out = String::new();
    let mut small = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() {
            small = false;
            if !out.is_empty() && !out.ends_with('-') {
                out.push('-');
            }
            continue;
        }
        if c.is_ascii_uppercase() && small {
            out.push('-');
        }
        small = !c.is_ascii_uppercase();
        out.push(c.to_ascii_lowercase());
    }
    let out = out.trim_matches('-');
    match out {
        "" => "service".into(),
        out => out.chars().take(60).collect(),
    }
}

/// The route and mapping of one operation.
struct Skeleton<'a> {
    operation: &'a Operation,
    stem: &'a str,
    name: &'a str,
    main: &'a str,
    input: Vec<Outline>,
    output: Vec<Outline>,
    /// Namespaces and their prefixes.
    prefixes: BTreeMap<String, String>,
}

impl<'a> Skeleton<'a> {
    fn new(
        outlines: &Outlines,
        operation: &'a Operation,
        stem: &'a str,
        name: &'a str,
        main: &'a str,
    ) -> Self {
        let input = outlines.body(&operation.input);
        let output = operation
            .output
            .as_ref()
            .map_or_else(Vec::new, |output| outlines.body(output));
        let mut prefixes = BTreeMap::new();
        for outline in input.iter().chain(&output) {
            name_prefixes(outline, &mut prefixes);
        }
        Self {
            operation,
            stem,
            name,
            main,
            input,
            output,
            prefixes,
        }
    }

    fn route(&self) -> String {
        let Self {
            operation,
            stem,
            name,
            main,
            ..
        } = self;
        let mut out = format!(
            "route: {stem}-{name}\ndescription: {}\n\n",
            quoted(&format!("{} of {main}", operation.name))
        );
        let _ = write!(
            out,
            "receive:\n  http:\n    path: /{stem}\n    soap: any\n    wsdl: {}\n    validate: request\n",
            quoted(&format!("{stem}/{main}"))
        );
        if let Some(element) = operation.input.first() {
            let _ = writeln!(out, "    element: {}", quoted(&element.to_string()));
        }
        if !self.prefixes.is_empty() {
            out.push_str("\nnamespaces:\n");
            for (uri, prefix) in &self.prefixes {
                let _ = writeln!(out, "  {prefix}: {}", quoted(uri));
            }
        }
        if operation.output.is_some() {
            let _ = write!(
                out,
                "\n# Systems that are asked before the answer, one after the other:\n\
                 # invoke:\n\
                 #   - name: backend\n\
                 #     http: {{ url: \"http://127.0.0.1:9001/\" }}\n\n\
                 reply:\n  transform: {stem}/{name}.rhai\n"
            );
        } else {
            let _ = write!(
                out,
                "\n# One-way: the caller gets 202, and no answer.\n\
                 distribute:\n  - name: out\n    transform: {stem}/{name}.rhai\n    \
                 file: {{ dir: {}, name: \"{{{{ id }}}}.xml\" }}\n",
                quoted(&format!("outbox/{stem}-{name}"))
            );
        }
        out
    }

    fn mapping(&self) -> String {
        let mut out = match self.operation.output {
            Some(_) => format!("// Makes the answer of {}.\n", self.operation.name),
            None => format!("// Takes {} out of its envelope.\n", self.operation.name),
        };
        let mut fields = String::new();
        for outline in &self.input {
            for child in &outline.children {
                self.fields(child, &self.qualified(child), &mut fields);
            }
        }
        if !fields.is_empty() {
            let _ = write!(
                out,
                "// What came stands beneath received.soap_body(), for example in\n\
                 // received.soap_body().xpath(PATH):\n{fields}"
            );
        }
        match (&self.operation.output, self.output.as_slice()) {
            (None, _) => out.push_str("soap_body()\n"),
            (Some(_), []) => out.push_str("// The answer's Body is empty.\n\"\"\n"),
            (Some(_), [first, ..]) => {
                self.element(first, 0, &mut out);
                out.push('\n');
            }
        }
        out
    }

    /// The paths of simple values, as comments.
    fn fields(&self, outline: &Outline, path: &str, out: &mut String) {
        if outline.children.is_empty() {
            let many = if outline.many { ", repeated" } else { "" };
            let optional = if outline.optional { ", optional" } else { "" };
            let _ = writeln!(out, "//   {path}  ({}{many}{optional})", kind(outline));
        }
        for child in &outline.children {
            self.fields(child, &format!("{path}/{}", self.qualified(child)), out);
        }
    }

    fn qualified(&self, outline: &Outline) -> String {
        match self.prefixes.get(&outline.namespace) {
            Some(prefix) => format!("{prefix}:{}", outline.local),
            None => outline.local.clone(),
        }
    }

    /// An element as an expression of the script.
    fn element(&self, outline: &Outline, depth: usize, out: &mut String) {
        let indent = "    ".repeat(depth);
        let _ = write!(out, "{indent}element({}, ", text(&self.qualified(outline)));
        if !outline.attributes.is_empty() {
            let attributes: Vec<String> = outline
                .attributes
                .iter()
                .map(|(name, value)| format!("{}: {}", text(name), text(value)))
                .collect();
            let _ = write!(out, "#{{ {} }}, ", attributes.join(", "));
        }
        if outline.children.is_empty() {
            let _ = write!(out, "{})", text(&outline.value));
            return;
        }
        out.push_str("[\n");
        for (number, child) in outline.children.iter().enumerate() {
            self.element(child, depth + 1, out);
            if number + 1 < outline.children.len() {
                out.push(',');
            }
            let mut notes = Vec::new();
            if child.children.is_empty() {
                notes.push(kind(child));
            }
            if child.optional {
                notes.push("optional");
            }
            if child.many {
                notes.push("may be repeated");
            }
            if !notes.is_empty() {
                let _ = write!(out, "    // {}", notes.join(", "));
            }
            out.push('\n');
        }
        let _ = write!(out, "{indent}])");
    }
}

fn kind(outline: &Outline) -> &str {
    match &*outline.kind {
        "" => "any content",
        kind => kind,
    }
}

fn name_prefixes(outline: &Outline, prefixes: &mut BTreeMap<String, String>) {
    if !outline.namespace.is_empty() && !prefixes.contains_key(&outline.namespace) {
        let prefix = format!("n{}", prefixes.len() + 1);
        prefixes.insert(outline.namespace.clone(), prefix);
    }
    for child in &outline.children {
        name_prefixes(child, prefixes);
    }
}

/// A text in YAML, in single quotes: nothing in it means anything but itself. `$` would begin a
/// reference to the environment.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''").replace("${", "$${"))
}

/// A text in rhai.
fn text(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_words() {
        assert_eq!(slug("GetStockLevel"), "get-stock-level");
        assert_eq!(slug("Z_STORE_TEMPLATE.get"), "z-store-template-get");
        assert_eq!(slug("HTTPPing"), "httpping");
        assert_eq!(slug("_"), "service");
    }
}
