//! Runs a compiled text as rhai's own `eval_ast` does, but with what earlier runs have resolved.
//!
//! rhai finds the function for a call by its name and the kinds of its arguments, and remembers it until the
//! run ends. Which one that is depends on the engine and the text alone, and neither ever changes: so it is
//! remembered from run to run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rhai::{
    AST, Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, Expression, Module, Position,
    Scope, Shared, Stmt, StmtBlock,
};

/// What is remembered of one run is thrown away beyond so many functions: a script may put together their names.
const MOST_RESOLVED: usize = 512;
/// So many runs at once find what others have resolved.
const MOST_KEPT: usize = 64;

/// A text that runs again and again with the same engine.
pub(crate) struct Runs {
    block: Expr,
    functions: Shared<Module>,
    /// One for each run that was under way at the same time.
    resolved: Mutex<Vec<Caches>>,
}

impl Runs {
    pub(crate) fn of(ast: &AST) -> Self {
        let statements: Vec<Stmt> = ast.statements().to_vec();
        let block = StmtBlock::new(statements, Position::NONE, Position::NONE);
        Self {
            block: Expr::Stmt(Box::new(block)),
            functions: ast.shared_lib().clone(),
            resolved: Mutex::default(),
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
        let mut resolved = self.kept().pop().unwrap_or_default();
        let mut global = engine.new_global_runtime_state();
        global.lib.push(self.functions.clone());
        let mut context = EvalContext::new(engine, &mut global, &mut resolved, scope, None);
        #[allow(deprecated)] // marked as volatile, not as obsolete
        let value = context.eval_expression_tree_raw(&Expression::from(&self.block), false);
        self.keep(resolved);
        value.or_else(|error| match *error {
            EvalAltResult::Return(value, _) | EvalAltResult::Exit(value, _) => Ok(value),
            _ => Err(error),
        })
    }

    fn keep(&self, mut resolved: Caches) {
        // After an error some may be left that hold within a function only.
        resolved.rewind_fn_resolution_caches(1);
        if resolved.fn_resolution_cache_mut().dict.len() > MOST_RESOLVED {
            return;
        }
        let mut kept = self.kept();
        if kept.len() < MOST_KEPT {
            kept.push(resolved);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Caches>> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
