//! One request: made by transformations, sent within its limits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::adapter::{Call, Class, SendError};
use crate::bus::Bus;
use crate::long;
use crate::plan::{Route, Step};
use crate::transform::{Context, Expression, Rules, Transform, Value};
use crate::{Code, Fault, Message};

/// Above this size whatever a transformation does with a body is likely to take long.
const LONG_BODY: usize = 256 * 1024;

/// Runs transformations in order.
pub(crate) async fn transform(
    transforms: &[Arc<dyn Transform>],
    message: &Arc<Message>,
    context: &Context,
) -> Result<Arc<Message>, Fault> {
    if transforms.is_empty() {
        return Ok(message.clone());
    }
    let apply = || {
        let mut message = message.clone();
        for transform in transforms {
            message = Arc::new(transform.apply(&message, context)?);
        }
        Ok(message)
    };
    // Large bodies do not wait for a place: slow scripts may hold them for seconds.
    let _place = if transforms.iter().any(|transform| transform.is_long()) {
        // Boxed, because most messages have no use for it.
        Box::pin(long::place()).await
    } else if message.body.bytes().len() > LONG_BODY {
        None
    } else {
        return apply();
    };
    long::run(apply)
}

/// Whose fault it is when a message breaks a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It came in.
    Received,
    /// A destination answered it.
    Response,
    /// The route made it.
    Made,
}

/// Holds a message against rules, where there are any.
pub(crate) fn check(
    rules: Option<&Arc<dyn Rules>>,
    message: &Message,
    origin: Origin,
) -> Result<(), Fault> {
    let Some(rules) = rules else { return Ok(()) };
    long::over(message.body.bytes().len(), long::PARSED, || {
        rules.check(message)
    })
    .map_err(|why| {
        let verdict = rules.verdict();
        match origin {
            Origin::Received => Fault::new(Code::Client, format!("the message {verdict}: {why}")),
            Origin::Response => Fault::new(Code::Destination, format!("the response {verdict}"))
                .detail(format!("the response {verdict}: {why}")),
            Origin::Made => Fault::new(Code::Transform, format!("what the route made {verdict}"))
                .detail(format!("what the route made {verdict}: {why}")),
        }
    })
}

/// Makes the request of a step: runs its transformations, and holds the result against its schema.
pub(crate) async fn make(
    step: &Step,
    message: &Arc<Message>,
    context: &Context,
) -> Result<Arc<Message>, Fault> {
    let made = transform(&step.transforms, message, context).await?;
    if step.checks.request.is_some() {
        let origin = if !step.transforms.is_empty() {
            Origin::Made
        } else if Arc::ptr_eq(message, &context.received) {
            Origin::Received
        } else {
            Origin::Response
        };
        check(step.checks.request.as_ref(), &made, origin)?;
    }
    Ok(made)
}

/// Evaluates a condition.
pub(crate) fn holds(
    condition: &dyn Expression,
    message: &Arc<Message>,
    context: &Context,
) -> Result<bool, Fault> {
    match condition.evaluate(message, context)? {
        Value::Bool(value) => Ok(value),
        other => Err(
            Fault::new(Code::Transform, "a condition failed").detail(format!(
                "'when' must give true or false, and gave {other:?}"
            )),
        ),
    }
}

/// Sends a call: waits for the step's turn, spares a failing destination, tries again as often as
/// the step says. Counts every attempt and tells the administrators what they should know.
pub(crate) async fn send(
    bus: &Bus,
    route: &Route,
    step: &Step,
    message: &Message,
    call: &dyn Call,
) -> Result<Message, Fault> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let error = match send_once(step, call).await? {
            Ok(response) => {
                // One that is still to be held against a schema is no success yet.
                if step.checks.response.is_none() {
                    bus.incidents().succeeded(&route.name, &step.name);
                }
                tell_of_partial(bus, route, step, &response);
                return Ok(response);
            }
            Err(error) => error,
        };
        let again = step
            .retry
            .filter(|retry| attempt < retry.attempts && error.class != Class::Rejected);
        let Some(retry) = again else {
            return Err(report(bus, route, step, message, error));
        };
        let wait = retry
            .wait(attempt)
            .max(error.retry_after.unwrap_or_default().min(retry.max));
        tracing::warn!(step = %step.name, attempt, error = %error.detail, "attempt failed");
        tokio::time::sleep(wait).await;
    }
}

/// One attempt, within gate, pace, breaker and timeout.
pub(crate) async fn send_once(
    step: &Step,
    call: &dyn Call,
) -> Result<Result<Message, SendError>, Fault> {
    let _place = match &step.gate {
        Some(gate) => Some(gate.enter().await.map_err(|fault| fault.at(&step.name))?),
        None => None,
    };
    if let Some(pace) = &step.pace {
        pace.start().await.map_err(|fault| fault.at(&step.name))?;
    }
    if let Some(breaker) = &step.breaker
        && let Err(left) = breaker.check()
    {
        let mut error = SendError::outage(format!(
            "not tried: the breaker is open for another {left:.0?}, after repeated failures"
        ));
        error.retry_after = Some(left);
        return Ok(Err(error));
    }
    let started = Instant::now();
    let result = call.run(started + step.timeout).await;
    let good = match &result {
        Ok(_) => true,
        Err(error) => error.class == Class::Rejected,
    };
    if let Some(breaker) = &step.breaker {
        breaker.report(good);
    }
    count(step, result.is_ok(), started.elapsed());
    Ok(result)
}

/// The header of a response in which a sender says who did not get the message although others did
/// (recipients of a mail that the server refused).
pub(crate) const PARTLY: &str = "xbus.partly-delivered";

/// A delivery that did not reach everybody is told: it is not repeated for those who have it.
pub(crate) fn tell_of_partial(bus: &Bus, route: &Route, step: &Step, response: &Message) {
    if let Some(missed) = response.headers.get(PARTLY) {
        bus.incidents().failed(
            &route.name,
            &step.name,
            "partly-delivered",
            &format!("not everybody got it: {missed}"),
            Some(response.id),
            None,
        );
    }
}

/// Counts one attempt.
pub(crate) fn count(step: &Step, success: bool, took: Duration) {
    step.stats.latency.observe(took);
    if success {
        step.stats.delivered.add();
    } else {
        step.stats.failed.add();
    }
}

/// Makes a fault of a failed send, and an incident where nobody else learns of it. An unknown outcome
/// is told by whoever knows what it means for the message.
pub(crate) fn report(
    bus: &Bus,
    route: &Route,
    step: &Step,
    message: &Message,
    error: SendError,
) -> Fault {
    let class = error.class;
    let kind = match class {
        Class::Rejected => "rejection",
        Class::Outage | Class::Unknown => "outage",
    };
    let mut fault = error.into_fault().at(&step.name);
    fault.told = class != Class::Unknown;
    if class != Class::Unknown && !(fault.rejected && route.answers) {
        bus.incidents().failed(
            &route.name,
            &step.name,
            kind,
            &fault.for_admin(),
            Some(message.id),
            route.waits_in().as_deref(),
        );
    }
    fault
}
