//! Prompts: presets, own templates, chat templates.

use super::{cue, write};
use gems_engine::data::*;
use serde_json::json;

#[test]
fn presets_and_own_templates_render() {
    let names = ["<item_1>".to_string(), "<item_2>".to_string()];
    let prompts = Prompts::new(&cue(), None, None).unwrap();
    let render = |task, history: &[String], query| prompts.render(task, history, " ", query).unwrap();
    assert_eq!(render("rec", &names, None), "<item_1> <item_2> next :");
    assert_eq!(render("rec", &names, Some("red tea")), "<item_1> <item_2> next red tea :");
    assert_eq!(render("search", &names, Some("red tea")), "<item_1> <item_2> find red tea :");
    assert_eq!(render("search", &[], Some("<b>")), "find <b> :");
    assert_eq!(prompts.missing("rec", false, true), Some("history"));
    assert_eq!(prompts.missing("search", true, false), Some("query"));
    assert_eq!(prompts.missing("search", false, true), None);
    let mut own = DataSettings::default();
    own.templates.insert("cart".into(), "{% for item in items %}[{{ item }}]{% endfor %} {{ query }}".into());
    let prompts = Prompts::new(&own, None, None).unwrap();
    assert_eq!(prompts.render("cart", &names, " ", Some("q")).unwrap(), "[<item_1>][<item_2>] q");
    for (task, template, part) in [
        ("rec", "{{ history", "data.templates.rec: the template fails"),
        ("rec", "{{ histroy }}", "did you mean `history`?"),
        ("rec", "hello", "neither history nor query"),
        (
            "search",
            "{{ history }}{% if qeury %} {{ query }}{% endif %}",
            "data.templates.search: the prompt uses `qeury`, and there is no such variable",
        ),
        ("rec", "{{ history }}{{ user }}", "there are `history`, `items` and `query`"),
    ] {
        let mut bad = DataSettings::default();
        bad.templates.insert(task.into(), template.into());
        let error = Prompts::new(&bad, None, None).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(part), "{template}: {error}");
    }
}

#[test]
fn the_checkpoints_chat_template_is_used_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{{ bos_token }}{% for m in messages %}\n<|{{ m['role'] }}|>{{ m.content.strip() }}{{ eos_token }}\
        {% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let config = json!({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    write(dir.path(), "tokenizer_config.json", &[config]);
    let settings = DataSettings { chat_template: true, ..cue() };
    let prompts = Prompts::new(&settings, Some(dir.path()), None).unwrap();
    assert!(prompts.is_chat());
    // What Jinja2 makes of it with trim_blocks and lstrip_blocks, as transformers sets them.
    let rendered = prompts.render("rec", &["<item_1>".into()], " ", None).unwrap();
    assert_eq!(prompts.chat(rendered).unwrap(), "<s><|user|><item_1> next :</s><|assistant|>");
    write(dir.path(), "tokenizer_config.json", &[json!({"bos_token": "<s>"})]);
    let error =
        Prompts::new(&settings, Some(dir.path()), None).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("no chat template"), "{error}");
}
