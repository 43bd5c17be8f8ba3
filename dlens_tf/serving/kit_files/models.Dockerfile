# Written by tools/serving_kit.py: the served versions as an image, for kubernetes.yaml.
FROM busybox:1.37.0
{% for model in models %}
{% for version in model.versions %}
COPY {{ model.name }}/{{ version }} /saved_models/{{ model.name }}/{{ version }}
{% endfor %}
{% endfor %}
