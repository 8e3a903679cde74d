//! xbus-transform: scripts, expressions, XPath, formats and charsets.
//!
//! The only crate that knows rhai. Absent: I/O while a message is under way (lookup tables are read
//! at load), DTDs, and anything that could keep a thread waiting.

mod convert;
#[cfg(test)]
mod docs;
#[doc(hidden)]
pub mod fuzz;
mod json;
mod limits;
mod number;
mod script;
mod settings;
mod table;
mod time;
mod written;
mod xpath;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xbus_xml as xml;

use xbus_core::transform::{CompileError, SchemaProblem, Scope, Source};
use xbus_core::{Compiler, Expression, Message, Rules, Transform};

pub use limits::Limits;
pub use settings::{LIMIT_FIELDS, limits};

/// Compiles the transformations and expressions of an installation. Make one for each load: lookup
/// tables are read once for each.
pub struct Engine {
    folder: PathBuf,
    scripts: script::Scripts,
}

impl Engine {
    /// An engine for the scripts and tables in `transforms_dir`. Does no I/O.
    pub fn new(transforms_dir: PathBuf, limits: Limits) -> Self {
        Self {
            scripts: script::Scripts::new(transforms_dir.clone(), limits),
            folder: transforms_dir,
        }
    }
}

fn not_yet(path: &Path, what: &str) -> CompileError {
    at_start(
        format!("{}: this build does not run {what} yet", path.display()),
        Some("write the transformation as a script that ends in .rhai".into()),
    )
}

fn at_start(message: String, help: Option<String>) -> CompileError {
    CompileError {
        message,
        line: 1,
        column: 1,
        help,
    }
}

impl Compiler for Engine {
    fn transform(
        &self,
        source: Source<'_>,
        scope: &Scope,
    ) -> Result<Arc<dyn Transform>, CompileError> {
        match source {
            Source::File(path) => self.file(path, scope),
            Source::Convert { from, to } if convert::possible(from, to) => {
                Ok(Arc::new(convert::Convert {
                    from,
                    to,
                    limits: self.scripts.shared().limits.clone(),
                }))
            }
            Source::Written(content_type) => written::written(content_type),
            Source::Convert { from, to } => Err(at_start(
                format!(
                    "there is no plain conversion from {} to {}",
                    from.map_or("the body's format", xbus_core::Format::name),
                    to.name()
                ),
                Some("write a script that makes one of the other".into()),
            )),
        }
    }

    fn expression(&self, text: &str, scope: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        self.scripts.expression(text, &scope.namespaces)
    }

    fn schema(&self, file: &Path) -> (Option<Arc<dyn Rules>>, Vec<SchemaProblem>) {
        let (schema, findings) = xbus_xml::schema::Schema::load(&self.folder, file);
        let problems = findings
            .into_iter()
            .map(|finding| SchemaProblem {
                error: finding.error,
                file: finding.file,
                line: finding.line,
                column: finding.column,
                message: finding.message,
                help: finding.help,
            })
            .collect();
        let rules = schema.map(|schema| Arc::new(WholeDocument(schema)) as Arc<dyn Rules>);
        (rules, problems)
    }
}

/// The root element of a message is one that a schema declares, and as it says.
struct WholeDocument(xbus_xml::schema::Schema);

impl Rules for WholeDocument {
    fn check(&self, message: &Message) -> Result<(), String> {
        self.0.check_message(message)
    }
}

impl Engine {
    fn file(&self, path: &Path, scope: &Scope) -> Result<Arc<dyn Transform>, CompileError> {
        let inside = path
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if !inside {
            return Err(at_start(
                format!("{} does not lie within transforms/", path.display()),
                None,
            ));
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rhai") => {}
            Some("xsl" | "xslt") => return Err(not_yet(path, "XSLT stylesheets")),
            Some("j2") => return Err(not_yet(path, "Jinja templates")),
            _ => {
                return Err(at_start(
                    format!(
                        "{}: the extension says no known kind of transformation",
                        path.display()
                    ),
                    Some("scripts end in .rhai".into()),
                ));
            }
        }
        let text = std::fs::read_to_string(self.folder.join(path))
            .map_err(|error| at_start(format!("{}: {error}", path.display()), None))?;
        self.scripts.script(
            format!("transforms/{}", path.display()),
            &text,
            &scope.namespaces,
        )
    }
}
