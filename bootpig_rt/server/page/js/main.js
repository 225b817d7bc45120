/** Puts the page together: every part is made here, and who hears of what. */

import { mountAbout, showContact } from "./about.js";
import { key } from "./api.js";
import { mountCodeDialog } from "./code_dialog.js";
import { Connection } from "./connection.js";
import { Consent } from "./consent.js";
import { byId, show } from "./dom.js";
import { mountDrop } from "./drop.js";
import { mountExamples, promptOf } from "./examples.js";
import { mountFigures } from "./figures.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { Guide } from "./guide.js";
import { mountKeyDialog } from "./key_dialog.js";
import { Library } from "./library.js";
import { LiveMode } from "./live_mode.js";
import { mountNotice } from "./notice.js";
import { pictureOfFile } from "./picture.js";
import { Place } from "./place.js";
import { readParameters } from "./png.js";
import { References } from "./references.js";
import { Reuse } from "./reuse.js";
import { Stage } from "./stage.js";
import { Studio } from "./studio.js";
import { SubjectChoice } from "./subject.js";
import { mountTheme } from "./theme.js";
import { toast } from "./toast.js";

/** @typedef {import("./types.js").Picture} Picture */
/** @typedef {import("./subject.js").Source} Source */

const composer = byId("composer", HTMLFormElement);
const referencePrompt = byId("reference_prompt", HTMLInputElement);

const connection = new Connection();
const form = new Form();
const stage = new Stage();
const gallery = new Gallery();
const consent = new Consent();
const references = new References({
  list: byId("references", HTMLElement),
  problem: byId("reference-problem", HTMLElement),
});
const subject = new SubjectChoice(references, () => referencePrompt.value.trim());
const library = new Library(() => form.model?.id ?? "");
const place = new Place(form);
const guide = new Guide(form);
const parts = { form, subject, references, consent, stage, gallery, connection, place, guide };
const studio = new Studio(parts);
const live = new LiveMode(parts);

/** Draw, or in live mode let it follow. */
function drawOrFollow() {
  if (live.isOn) live.wish();
  else studio.draw();
}

/** @param {Source} source */
function setSource(source) {
  subject.source = source;
  for (const name of ["pictures", "library", "none"]) show(byId(`from-${name}`, HTMLElement), name === source);
  const radio = composer.querySelector(`[name=source][value=${source}]`);
  /** @type {HTMLInputElement} */ (radio).checked = true;
}

/** The prompt begins with what the references show: where one changes, so does the other. */
function followReferencePrompt() {
  let old = referencePrompt.value.trim();
  const follow = () => {
    const now = referencePrompt.value.trim();
    if (old && now && form.prompt.startsWith(old)) form.prompt = now + form.prompt.slice(old.length);
    if (now) old = now;
  };
  referencePrompt.addEventListener("input", follow);
  return follow;
}
const promptFollows = followReferencePrompt();

const reuse = new Reuse({
  ...parts,
  library,
  setSource,
  setReferencePrompt: (text) => {
    referencePrompt.value = text;
    promptFollows();
  },
});

/**
 * Settings of an earlier picture come into the form.
 *
 * @param {Picture} picture
 */
async function useSettings(picture) {
  await reuse.settingsOf(picture);
  live.wish();
}

/**
 * A picture that was drawn here, or on another machine, comes back as a file.
 *
 * @param {import("./types.js").Parameters} parameters
 * @param {Blob} file
 */
function restoreFrom(parameters, file) {
  const picture = pictureOfFile(file, parameters, form.models);
  if (!live.isOn) stage.show(picture);
  useSettings(picture);
}

/** @param {string} scene */
function drawScene(scene) {
  form.prompt = promptOf(subject.referencePrompt || "a photo", scene);
  drawOrFollow();
}

function showReferenceLimit() {
  references.max = Math.min(form.model?.max_references ?? 4, connection.limits.max_references ?? 64);
  byId("reference-limit", HTMLElement).textContent = references.max > 1 ? `up to ${references.max}` : "one";
}

/** What the server has told, once it is there. */
async function meetServer() {
  if (connection.state !== "ready") return;
  form.offer(connection.models, connection.limits);
  guide.offer();
  showReferenceLimit();
  showContact(connection.limits.contact);
  references.lookAgain();
  try {
    if (!byId("examples", HTMLElement).children.length) await mountExamples({ onSubject, onScene: drawScene });
  } catch (error) {
    connection.hear(error); // it went away meanwhile, and is met again when it is back
  }
  await library.load();
  if (live.isOn) live.wish();
}

/**
 * @param {import("./examples.js").Example} example
 * @param {Promise<File>} file
 */
async function onSubject(example, file) {
  setSource("pictures");
  referencePrompt.value = example.reference_prompt;
  promptFollows();
  const before = references.all;
  const picture = await file;
  if (references.all === before) references.set([picture], { isOwn: false }); // or others came first
}

connection.addEventListener("change", meetServer);
references.addEventListener("change", () => {
  consent.askIf(references.isOwn && references.all.length > 0);
  if (live.isOn && references.all.length) live.wish();
});
subject.addEventListener("encoded", () => library.load());
library.addEventListener("choose", (event) => {
  subject.known = /** @type {CustomEvent} */ (event).detail;
  if (!subject.known) return;
  const before = subject.referencePrompt;
  setSource("library");
  referencePrompt.value = before;
  if (live.isOn) live.wish();
});
gallery.addEventListener("add", () => {
  if (subject.source === "library") library.load(); // its table may be known from now on
});
gallery.addEventListener("open", (event) => {
  const picture = /** @type {CustomEvent<Picture | null>} */ (event).detail;
  studio.cancel();
  if (!picture) return stage.empty();
  stage.show(picture);
  stage.focus();
});

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  drawOrFollow();
});
composer.addEventListener("input", (event) => {
  const control = /** @type {HTMLInputElement} */ (event.target);
  const { name, value, id } = control;
  form.clearProblem(control);
  if (name === "mode") {
    studio.cancel();
    live.turn(value === "live");
  }
  else if (name === "source") {
    setSource(/** @type {Source} */ (value));
    if (value === "library") library.load(); // others of this key may have added to it
  }
  else if (name === "model") {
    form.showDefaults();
    showReferenceLimit();
    guide.offer();
  }
  if (name === "model" || name === "size") {
    place.fit();
    guide.fit();
  }
  if (id !== "files" && name !== "mode") live.wish();
});
for (const given of [place, guide]) given.addEventListener("change", () => live.wish());
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    composer.requestSubmit();
  } else if (event.key === "Escape") {
    studio.cancel();
  }
});

const files = byId("files", HTMLInputElement);
byId("choose", HTMLButtonElement).addEventListener("click", () => files.click());
files.addEventListener("change", () => {
  setSource("pictures");
  references.add([...(files.files ?? [])]);
  files.value = "";
});
mountDrop({
  onPictures: (pictures) => {
    setSource("pictures");
    references.add(pictures);
  },
  onSubject: (file) => library.upload(file),
  onOwnPicture: restoreFrom,
});

const openCode = mountCodeDialog(() => key.get() !== "");
byId("open-code", HTMLButtonElement).addEventListener("click", () => stage.picture && openCode(stage.picture));
byId("use-settings", HTMLButtonElement).addEventListener("click", () => stage.picture && useSettings(stage.picture));
byId("again", HTMLButtonElement).addEventListener("click", () => studio.draw({ isNewSeed: true }));
byId("delete-picture", HTMLButtonElement).addEventListener("click", () => {
  const { picture } = stage;
  if (!picture) return;
  gallery.remove(picture);
  const [next] = gallery.pictures;
  if (next) stage.show(next);
  else stage.empty();
  stage.focus();
});
byId("dice", HTMLButtonElement).addEventListener("click", () => {
  byId("seed", HTMLInputElement).value = "";
});
byId("reset-settings", HTMLButtonElement).addEventListener("click", () => form.reset());

const restoreFile = byId("restore-file", HTMLInputElement);
byId("restore", HTMLButtonElement).addEventListener("click", () => restoreFile.click());
restoreFile.addEventListener("change", async () => {
  const [file] = restoreFile.files ?? [];
  restoreFile.value = "";
  if (!file) return;
  const parameters = await readParameters(file);
  if (parameters) restoreFrom(parameters, file);
  else toast("This picture carries no parameters: it was not drawn here, or a program removed them.");
});

mountTheme(byId("theme", HTMLButtonElement));
mountAbout();
mountKeyDialog(connection);
mountNotice(connection);
const lookAtFigures = mountFigures(byId("figures", HTMLElement), () => connection.state === "ready");
connection.addEventListener("change", lookAtFigures);
gallery.load();
connection.check();
