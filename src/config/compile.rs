//! A compiler that compiles each text once, however many routes use it, and remembers what is wrong
//! with it. What it gives is shared: compiled texts keep no state between messages.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use xbus_core::problem::suggest;
use xbus_core::transform::{Asked, CompileError, SchemaProblem, Scope, Source};
use xbus_core::{Compiler, Expression, Format, Rules, Transform};

/// Remembers what another compiler gave.
pub(crate) struct Memo<'a> {
    inner: &'a dyn Compiler,
    expressions: Store<String, dyn Expression>,
    transforms: Store<SourceKey, dyn Transform>,
    schemas: Mutex<HashMap<PathBuf, Schema>>,
}

/// The rules of a schema, and what is to be said of it.
type Schema = (Option<Arc<dyn Rules>>, Vec<SchemaProblem>);
type Store<K, T> = Mutex<HashMap<(BTreeMap<String, String>, K), Result<Arc<T>, CompileError>>>;

#[derive(Clone, PartialEq, Eq, Hash)]
enum SourceKey {
    File(Box<Path>),
    Convert(Option<Format>, Format),
    Written(Box<str>),
}

impl<'a> Memo<'a> {
    pub(crate) fn new(inner: &'a dyn Compiler) -> Self {
        Self {
            inner,
            expressions: Mutex::default(),
            transforms: Mutex::default(),
            schemas: Mutex::default(),
        }
    }
}

fn remembered<K: Eq + std::hash::Hash, T: ?Sized>(
    store: &Store<K, T>,
    scope: &Scope,
    key: K,
    make: impl FnOnce() -> Result<Arc<T>, CompileError>,
) -> Result<Arc<T>, CompileError> {
    store
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry((scope.namespaces.clone(), key))
        .or_insert_with(make)
        .clone()
}

impl Compiler for Memo<'_> {
    fn transform(
        &self,
        source: Source<'_>,
        scope: &Scope,
    ) -> Result<Arc<dyn Transform>, CompileError> {
        let key = match &source {
            Source::File(path) => SourceKey::File(Box::from(*path)),
            Source::Convert { from, to } => SourceKey::Convert(*from, *to),
            Source::Written(content_type) => SourceKey::Written(Box::from(*content_type)),
        };
        remembered(&self.transforms, scope, key, || {
            self.inner.transform(source, scope)
        })
    }

    fn expression(&self, text: &str, scope: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        remembered(&self.expressions, scope, text.to_owned(), || {
            self.inner.expression(text, scope)
        })
    }

    fn schema(&self, file: &Path) -> Schema {
        self.schemas
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(file.to_owned())
            .or_insert_with(|| self.inner.schema(file))
            .clone()
    }
}

/// A compiler for one place of a route: whoever reads a response there names a step that has run.
pub(crate) struct Steps<'a> {
    pub(crate) inner: &'a dyn Compiler,
    /// The steps that have run.
    pub(crate) known: &'a [Arc<str>],
    /// What is said of any other.
    pub(crate) missing: &'static str,
}

impl Steps<'_> {
    fn judge(&self, asks: &[Asked]) -> Result<(), CompileError> {
        let known = || self.known.iter().map(|name| &**name);
        let unknown = asks
            .iter()
            .find(|asked| known().all(|name| name != asked.step));
        match unknown {
            None => Ok(()),
            Some(asked) => Err(CompileError {
                message: format!("{} '{}', whose response is read", self.missing, asked.step),
                line: asked.line,
                column: asked.column,
                help: Some(suggest(&asked.step, known().collect::<Vec<_>>())),
            }),
        }
    }
}

impl Compiler for Steps<'_> {
    fn transform(
        &self,
        source: Source<'_>,
        scope: &Scope,
    ) -> Result<Arc<dyn Transform>, CompileError> {
        let made = self.inner.transform(source, scope)?;
        self.judge(made.asks())?;
        Ok(made)
    }

    fn expression(&self, text: &str, scope: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        let made = self.inner.expression(text, scope)?;
        self.judge(made.asks())?;
        Ok(made)
    }

    fn schema(&self, file: &Path) -> Schema {
        self.inner.schema(file)
    }
}
