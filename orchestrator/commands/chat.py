"""`orchestrator chat`: a conversation with a model."""

from modules.chat_template import ChatTemplate, find_chat_template
from modules.conversation import Conversation, system_message
from modules.data.pretrained_tokenizer import named_tokens
from modules.generation.window import window_size
from modules.huggingface.weights import num_parameters
from orchestrator.artifacts.model_folders import check_output_head, find_adapter, find_model, read_files
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.artifacts.template_file import read_template
from orchestrator.configuration.commands import ChatConfig
from orchestrator.display.chat import converse
from orchestrator.display.units import count
from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact


def run(config: ChatConfig) -> None:
    """Find the template, load the model and converse.

    Raises:
        UserError: messages from a pipe were refused, which is reported as they come.
    """
    check_output_head(config.model.path, config.model.revision)
    template = _template(config)
    # what no message can be written with is refused before the weights are loaded
    template.render([*system_message(config.system), {"role": "user", "content": "Hello"}], add_generation_prompt=True)
    trained = load_model(config.model.path, config.model.revision, config.model.adapter).prepared(
        config.precision, config.prepack
    )
    sampling = trained.sampling(config.stop, **config.drawn(default_temperature=1.0))
    conversation = Conversation(trained.model, trained.tokenizer, template, sampling, config.stop)
    with trained.precision():
        conversation.set_system(config.system)
        num_refused = converse(conversation, _title(config, trained))
    if num_refused:
        raise UserError(f"lines refused for the reasons above: {num_refused}; the others were answered")


def _template(config: ChatConfig) -> ChatTemplate:
    where = f"model.path={redact(config.model.path)}"
    files = read_files(find_model(config.model.path, config.model.revision).folder)
    if config.model.adapter is not None:  # which may have learned to chat
        files |= read_files(find_adapter(config.model.adapter).folder)
    if config.chat_template is None:
        return find_chat_template(files, where)
    text = read_template(config.chat_template, "chat_template")
    return ChatTemplate({"default": text}, named_tokens(files, where), f"chat_template={redact(config.chat_template)}")


def _title(config: ChatConfig, trained: TrainedModel) -> str:
    size = window_size(trained.model, trained.context_length)
    number = count(num_parameters(trained.model.config, trained.model.vocab_size))
    return f"{redact(config.model.path)}: {number} parameters, sees {size:,} tokens at once."
