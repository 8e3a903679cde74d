//! Runs a compiled text as rhai's own `eval_ast` does, but with what earlier runs have resolved.
//!
//! rhai finds the function for a call by its name and the kinds of its arguments, and remembers it until the
//! run ends. Which one that is depends on the engine and the text alone, and neither ever changes: so it is
//! remembered from run to run.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rhai::{
    AST, Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, Expression, Module, Position,
    Scope, Shared, Stmt, StmtBlock,
};

/// What is remembered of one run is thrown away beyond so many functions: a script may put together their names.
const MOST_RESOLVED: usize = 512;
/// So many threads find what they have resolved before.
const PLACES: usize = 16;

thread_local! {
    /// The place of this thread: what one core resolves another need not fetch from it.
    static PLACE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % PLACES
    };
}

/// What was resolved in one place, if anything, and nothing while it is used. Places do not share cache lines.
#[derive(Default)]
#[repr(align(64))]
struct Place(Mutex<Option<Caches>>);

/// A text that runs again and again with the same engine.
pub(crate) struct Runs {
    block: Expr,
    functions: Shared<Module>,
    resolved: OnceLock<Box<[Place; PLACES]>>,
}

impl Runs {
    pub(crate) fn of(ast: &AST) -> Self {
        let statements: Vec<Stmt> = ast.statements().to_vec();
        let block = StmtBlock::new(statements, Position::NONE, Position::NONE);
        Self {
            block: Expr::Stmt(Box::new(block)),
            functions: ast.shared_lib().clone(),
            resolved: OnceLock::new(),
        }
    }

    pub(crate) fn statements(&self) -> &[Stmt] {
        match &self.block {
            Expr::Stmt(block) => block.statements(),
            _ => &[],
        }
    }

    /// The value of the last statement.
    pub(crate) fn run(
        &self,
        engine: &Engine,
        scope: &mut Scope<'_>,
    ) -> Result<Dynamic, Box<EvalAltResult>> {
        let places = self.resolved.get_or_init(Box::default);
        let Place(place) = &places[PLACE.with(|place| *place)];
        let kept = || place.lock().unwrap_or_else(PoisonError::into_inner);
        let mut resolved = kept().take().unwrap_or_default();
        let mut global = engine.new_global_runtime_state();
        global.lib.push(self.functions.clone());
        let mut context = EvalContext::new(engine, &mut global, &mut resolved, scope, None);
        #[allow(deprecated)] // marked as volatile, not as obsolete
        let value = context.eval_expression_tree_raw(&Expression::from(&self.block), false);
        // After an error some may be left that hold within a function only.
        resolved.rewind_fn_resolution_caches(1);
        if resolved.fn_resolution_cache_mut().dict.len() <= MOST_RESOLVED {
            *kept() = Some(resolved);
        }
        value.or_else(|error| match *error {
            EvalAltResult::Return(value, _) | EvalAltResult::Exit(value, _) => Ok(value),
            _ => Err(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_resolved_holds_for_other_values_and_after_errors() {
        let engine = Engine::new();
        let text = r#"
            fn twice(x) { if x == 7 { missing(x) } else { x + x } }
            if value == 0 { return "early"; }
            [value].map(|x| twice(x))[0] + twice(value)
        "#;
        let runs = Runs::of(&engine.compile(text).unwrap());
        let with = |value: Dynamic| {
            let mut scope = Scope::new();
            scope.push_dynamic("value", value);
            runs.run(&engine, &mut scope).map(|value| value.to_string())
        };
        for _ in 0..3 {
            assert_eq!(with(2.into()).unwrap(), "8");
            assert_eq!(with("a".into()).unwrap(), "aaaa");
            assert_eq!(with(0.5.into()).unwrap(), "2.0");
            assert_eq!(with(0.into()).unwrap(), "early");
            let error = with(7.into()).unwrap_err().to_string();
            assert!(error.contains("missing"), "{error}");
        }
    }

    #[test]
    fn names_that_a_script_puts_together_are_forgotten() {
        let engine = Engine::new();
        let text =
            r#"for n in 0..most { for again in 0..2 { try { call(Fn("f" + n)) } catch {} } }"#;
        let runs = Runs::of(&engine.compile(text).unwrap());
        for (most, kept) in [(10_i64, true), (MOST_RESOLVED as i64, false)] {
            let mut scope = Scope::new();
            scope.push("most", most);
            assert!(runs.run(&engine, &mut scope).is_ok());
            let places = runs.resolved.get().unwrap();
            let any = places
                .iter()
                .any(|Place(one)| one.lock().unwrap().is_some());
            assert_eq!(any, kept, "{most}");
        }
    }
}
