//! What scripts do with numbers that are too long for an integer or a float: print them, pass them
//! on, compare them. Absent: arithmetic, which would have to lose digits; `number(…)` does so openly.

use std::cmp::Ordering;

use rhai::{Dynamic, FLOAT, INT};

use super::error::ScriptError;
use super::functions::R;
use super::values::LongNumber;
use crate::number::compare;

fn float_text(value: FLOAT) -> String {
    value.to_string()
}

fn order(a: &str, b: &str) -> R<Ordering> {
    if a == b {
        return Ok(Ordering::Equal);
    }
    compare(a, b).ok_or_else(|| {
        ScriptError::text(format!("the numbers {a} and {b} cannot be compared")).into()
    })
}

fn equal(a: &str, b: &str) -> bool {
    a == b || compare(a, b) == Some(Ordering::Equal)
}

fn refuse(number: &LongNumber) -> R<Dynamic> {
    let shown: String = number.0.text().chars().take(40).collect();
    Err(ScriptError::text(format!(
        "the number {shown} is too long for exact arithmetic: number(…) makes the nearest float \
         of it"
    ))
    .into())
}

fn text_refused(number: &LongNumber) -> R<bool> {
    let shown: String = number.0.text().chars().take(40).collect();
    Err(ScriptError::text(format!(
        "a text is compared with the number {shown}: number(…) makes a number of a text"
    ))
    .into())
}

pub(super) fn register(engine: &mut rhai::Engine) {
    type N = LongNumber;
    type Holds = fn(Ordering) -> bool;
    engine
        .register_type_with_name::<N>("number")
        .register_fn("to_string", |n: &mut N| n.0.text().to_owned())
        .register_fn("to_debug", |n: &mut N| n.0.text().to_owned())
        .register_fn("number", |n: N| n.0.nearest())
        .register_fn("json", |n: N| n.0.text().to_owned())
        .register_fn("-", |n: N| refuse(&n))
        .register_fn("+", |n: N| n)
        .register_fn("==", |a: N, b: N| equal(a.0.text(), b.0.text()))
        .register_fn("==", |a: N, b: INT| equal(a.0.text(), &b.to_string()))
        .register_fn("==", |a: INT, b: N| equal(&a.to_string(), b.0.text()))
        .register_fn("==", |a: N, b: FLOAT| equal(a.0.text(), &float_text(b)))
        .register_fn("==", |a: FLOAT, b: N| equal(&float_text(a), b.0.text()))
        .register_fn("!=", |a: N, b: N| !equal(a.0.text(), b.0.text()))
        .register_fn("!=", |a: N, b: INT| !equal(a.0.text(), &b.to_string()))
        .register_fn("!=", |a: INT, b: N| !equal(&a.to_string(), b.0.text()))
        .register_fn("!=", |a: N, b: FLOAT| !equal(a.0.text(), &float_text(b)))
        .register_fn("!=", |a: FLOAT, b: N| !equal(&float_text(a), b.0.text()));
    let orders: [(&str, Holds); 4] = [
        ("<", Ordering::is_lt),
        ("<=", Ordering::is_le),
        (">", Ordering::is_gt),
        (">=", Ordering::is_ge),
    ];
    for (operator, holds) in orders {
        engine
            .register_fn(operator, move |a: N, b: N| {
                order(a.0.text(), b.0.text()).map(holds)
            })
            .register_fn(operator, move |a: N, b: INT| {
                order(a.0.text(), &b.to_string()).map(holds)
            })
            .register_fn(operator, move |a: INT, b: N| {
                order(&a.to_string(), b.0.text()).map(holds)
            })
            .register_fn(operator, move |a: N, b: FLOAT| {
                order(a.0.text(), &float_text(b)).map(holds)
            })
            .register_fn(operator, move |a: FLOAT, b: N| {
                order(&float_text(a), b.0.text()).map(holds)
            })
            .register_fn(operator, |a: N, _: &str| text_refused(&a))
            .register_fn(operator, |_: &str, b: N| text_refused(&b));
    }
    for operator in ["+", "-", "*", "/", "%", "**"] {
        engine
            .register_fn(operator, |a: N, _: N| refuse(&a))
            .register_fn(operator, |a: N, _: INT| refuse(&a))
            .register_fn(operator, |_: INT, b: N| refuse(&b))
            .register_fn(operator, |a: N, _: FLOAT| refuse(&a))
            .register_fn(operator, |_: FLOAT, b: N| refuse(&b));
    }
    for function in [
        "abs", "sign", "floor", "ceiling", "round", "int", "fraction", "to_int", "to_float",
    ] {
        engine.register_fn(function, |n: N| refuse(&n));
    }
    engine
        .register_fn("decimals", |n: N, _: INT| refuse(&n))
        .register_fn("round", |n: N, _: INT| refuse(&n));
}
