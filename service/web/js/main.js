// The page: who asks, where in the page, and what is shown there.
import { onConnection } from "./connection.js";
import { forgetKey, storedKey } from "./key.js";
import { SignIn } from "./views/sign_in.js";
import { Choice } from "./parts/choice.js";
import { setTheme, theme, THEMES } from "./theme.js";
import { Job } from "./views/job.js";
import { Runs } from "./views/runs.js";
import { Sweep } from "./views/sweep.js";
import { html, render, useEffect, useRef, useState } from "./ui.js";

const ROUTES = [
  [/^\/jobs\/([^/]+)$/, (id) => html`<${Job} key=${id} id=${id} />`],
  [/^\/sweeps\/([^/]+)$/, (id) => html`<${Sweep} key=${id} id=${id} />`],
  [/^\/sweeps$/, () => html`<${Runs} key="sweeps" kind="sweep" />`],
  [/^.*$/, () => html`<${Runs} key="jobs" kind="job" />`],
];

const here = () => decodeURIComponent(location.hash.slice(1)).split("?")[0] || "/jobs";

function route(path) {
  const [pattern, show] = ROUTES.find(([pattern]) => pattern.test(path));
  return show(...path.match(pattern).slice(1));
}

function App() {
  const [path, setPath] = useState(here());
  const [hasKey, setHasKey] = useState(storedKey() !== null);
  const main = useRef();
  useEffect(() => {
    const onHash = () => setPath(here());
    const onRefused = () => setHasKey(false);
    addEventListener("hashchange", onHash);
    addEventListener("key-refused", onRefused);
    return () => {
      removeEventListener("hashchange", onHash);
      removeEventListener("key-refused", onRefused);
    };
  }, []);
  const isFirst = useRef(true);
  useEffect(() => {
    if (!isFirst.current) main.current.focus({ preventScroll: true });
    if (!isFirst.current) scrollTo(0, 0);
    isFirst.current = false;
  }, [path]);
  const signOut = () => (forgetKey(), setHasKey(false));
  // a link to `#main` would be a route of its own
  const skip = (event) => (event.preventDefault(), main.current.focus());
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <${Header} path=${path} signOut=${hasKey ? signOut : null} />
    <${Connection} />
    <main id="main" ref=${main} tabindex="-1">
      ${hasKey ? route(path) : html`<${SignIn} onKey=${() => setHasKey(true)} />`}
    </main>`;
}

function Header({ path, signOut }) {
  const link = (name, title) => {
    const isHere = path.startsWith(name);
    return html`<a href="#${name}" aria-current=${isHere ? (path === name ? "page" : "true") : null}>${title}</a>`;
  };
  return html`<header class="top">
    <a class="brand" href="#/jobs"><${Harness} /><span>Sleddog</span></a>
    ${signOut && html`<nav aria-label="Main">${link("/jobs", "Jobs")}${link("/sweeps", "Sweeps")}</nav>`}
    <span class="grow"></span>
    <${ThemeSwitch} />
    ${signOut && html`<button type="button" class="plain" onClick=${signOut}>Forget key</button>`}
  </header>`;
}

// As `icon.svg`, in the colour of the theme.
const Harness = () => html`<svg viewBox="0 0 16 16" width="20" height="20" aria-hidden="true"><path
  d="M1.5 3.5 8 8.2l6.5-4.7M3.5 8 8 11l4.5-3M8 8.2V14" /></svg>`;

const THEME_TITLES = { auto: "◐ System", light: "○ Light", dark: "● Dark" };

function ThemeSwitch() {
  const [chosen, choose] = useState(theme());
  return html`<${Choice} label="Colours" isLabelSeen=${false} value=${chosen} choose=${(name) => (setTheme(name), choose(name))}
    options=${THEMES.map((name) => [name, THEME_TITLES[name]])} />`;
}

function Connection() {
  const [isUp, setIsUp] = useState(true);
  useEffect(() => onConnection(setIsUp), []);
  return html`<div role="status" class="connection">${
    !isUp && html`<p>The service does not answer. What you see may be old; the page asks again by itself.</p>`
  }</div>`;
}

render(html`<${App} />`, document.getElementById("page"));
