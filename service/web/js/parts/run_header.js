// What heads the page of a job or a sweep: which it is, how it stands, what can be done.
import { getJson, newKey, post } from "../api.js";
import { usePolled } from "../live.js";
import { duration, moment, secondsBetween } from "../pure/format.js";
import { actionsOf, remedy } from "../pure/actions.js";
import { html, useEffect, useState } from "../ui.js";
import { Ask } from "./dialog.js";
import { Facts } from "./panels.js";
import { isOver, Status } from "./status.js";

export function RunHeader({ run, kind, path, onActed, children }) {
  return html`<div class="heading run">
      <div><p class="id">${run.id}</p><h1>${run.name}</h1></div>
      <${Status} status=${run.status} />
      <${Actions} run=${run} kind=${kind} path=${path} onActed=${onActed} />${children}
    </div>
    <${Facts} items=${[
      ["Created", html`<time datetime=${run.created_at}>${moment(run.created_at)}</time>`],
      run.started_at && ["Started", html`<time datetime=${run.started_at}>${moment(run.started_at)}</time>`],
      run.started_at && [isOver(run) ? "Took" : "Runs for", html`<${Clock} run=${run} />`],
      run.queue_position && ["Place in the queue", run.queue_position],
      run.retry_of && ["Retry of", html`<a href="#/${kind}s/${run.retry_of}">${run.retry_of}</a>`],
      run.created_by && ["Asked for by", run.created_by],
      run.attempt > 1 && ["Starts of its driver", run.attempt],
    ]} />
    ${run.error && html`<${WhyFailed} error=${run.error} />`}`;
}

function Clock({ run }) {
  const [, tick] = useState(0);
  useEffect(() => {
    if (isOver(run)) return undefined;
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, [run.status]);
  return duration(secondsBetween(run.started_at, run.finished_at));
}

function WhyFailed({ error }) {
  return html`<div class="callout bad" role="alert">
    <p><strong>${error.message}</strong></p>
    <p>${error.field && html`Field <code>${error.field}</code>. `}${remedy(error)} <code>${error.code}</code></p>
  </div>`;
}

// What the service offers and the status allows; each asks first.
function Actions({ run, kind, path, onActed }) {
  const offered = usePolled((signal) => getJson("/openapi.json", { signal }), null, []).data?.paths ?? {};
  const [chosen, choose] = useState(null);
  const actions = actionsOf(run.status, kind).filter(({ verb }) => `/v1/${kind}s/{${kind}_id}/${verb}` in offered);
  return html`<div class="actions">
    ${actions.map((action) => html`<button key=${action.verb} type="button" class=${action.danger ? "danger" : ""}
      onClick=${() => choose(action)}>${action.title}</button>`)}
    ${chosen && html`<${Ask} title="${chosen.title} ${run.name}?" yes="${chosen.title} it" no=${chosen.no}
      danger=${chosen.danger} act=${() => act(chosen, path, kind, run).then(onActed)} onClose=${() => choose(null)}>
      <p>${chosen.consequence}</p><//>`}
  </div>`;
}

async function act({ verb }, path, kind, run) {
  const answer = await post(`${path}/${verb}`, null, newKey());
  if (answer.id && answer.id !== run.id) location.hash = `/${kind}s/${answer.id}`;
}
